"""`sessfs history`: which snapshots of a session are kept, of a mount or straight from the bucket."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import to_builtins

from sessfs.api.remote import RemoteStore
from sessfs.cli import mounting, options, output, remote_commands
from sessfs.cli.histories import ask
from sessfs.cli.tables import print_table
from sessfs.sessions.usage import rfc3339

Json = options.Json


def history(
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="The session's directory in a mount; with --remote, its name.")
    ],
    remote: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this remote, which may be mounted, instead of a mount.")
    ] = None,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    as_json: Json = False,
) -> None:
    """List the kept snapshots of SESSION, oldest first: number, time, mark, and what `sessfs check` found."""
    if remote is None:
        answer = ask(options.parse_place(session), "history")
    else:
        settings = remote_commands.settings_for(remote, endpoint_url, region, path_style, key_file)
        with RemoteStore(settings) as store:
            found = store.session(session).history()
        answer = {
            "session": session,
            "snapshots": [{**to_builtins(one), "taken": rfc3339(one.taken_ns)} for one in found],
        }
    if as_json:
        output.print_json(answer)
        return
    rows = [
        (str(one["sequence"]), str(one["taken"] or "-"), one["verdict"] or "-", one["mark"])
        for one in answer["snapshots"]
    ]
    print_table(("SNAPSHOT", "TAKEN", "CHECKED", "MARK"), rows, right=(0,))
