"""What a start with a remote begins with: what of this state was never published, and what of it is in doubt."""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING, Protocol

from sessfs.local.reserved import is_view
from sessfs.sync.upload import Numbering
from sessfs.types import ROOT_INO

if TYPE_CHECKING:
    from sessfs.format.repository import Holder
    from sessfs.local.changes import Changes
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.sync.restore import SessionDirectory

log = logging.getLogger(__name__)


class Opened(Numbering, Protocol):
    """The node, which holds the prefix."""

    @property
    def former(self) -> Holder | None:
        """Who held the prefix before; None when nobody ever did."""


def note_unpublished(inodes: Inodes, places: Places, changes: Changes) -> None:
    """At a start: what was never published, or made without the remote, is to be published whole."""
    for name, dentry in list(inodes.iter_dentries(ROOT_INO)):
        session = dentry.ino if stat.S_ISDIR(dentry.kind) else ROOT_INO
        published = places.published(session)
        if is_view(name):
            continue
        if published is None or (published.manifest is None and not published.stub):
            log.info("%s was never published, or changed without the remote", name.decode(errors="replace"))
            changes.note_whole(session)


def take_in(node: Opened, places: Places, sessions: SessionDirectory) -> None:
    """Once the node is open: settle the upload that was on its way, and distrust what is here unless this state was the
    last to hold the prefix. That the node's name was the last is not enough: the state may be a copy that was put back,
    or have held the prefix after another node without having compared itself with it. Synchronous, so that nobody sees
    the node open and its sessions not yet distrusted.
    """
    outbox = places.outbox()
    if outbox is not None:
        # Also when another node came after: then it took over what this one's state names.
        if node.last_segment >= outbox.last_segment:
            places.adopt(node.name, outbox)
        else:
            places.set_outbox(None)
    former, held = node.former, places.held()
    was_here = former is not None and (former.node, former.incarnation) == (node.name, held)
    if not was_here and (former, held) != (None, None):
        sessions.distrust()
    places.set_held(node.incarnation)
