"""HTTPS server of the page that stands in for https://web.whatsapp.com; run as a program by chromelife.py.

It prints one JSON line {port, spki, assets, asset_bytes} once it listens on 127.0.0.1, and serves until its standard
input closes. It keeps nothing about a user: whatever a life must find again is in that user's Chrome profile.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import gzip
import hashlib
import ipaddress
import json
import os
import ssl
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HOST: Final = "web.whatsapp.com"
PAGE_DIR: Final = Path(__file__).resolve().parent

# Real JavaScript in the sizes that WhatsApp Web has: a few bundles of megabytes and many files of some kilobytes.
# RUN is executed by a paired page (so that Chrome writes code caches too), KEPT only stored.
RUN: Final = (
    "plotly.js-dist-min/plotly.min.js",
    "@babel/standalone/babel.min.js",
    "echarts/dist/echarts.min.js",
)
KEPT: Final = (
    "typescript/lib/typescript.js",
    "@babel/standalone/babel.js",
    "echarts/dist/echarts.js",
    "three/build/three.core.js",
    "three/build/three.module.js",
    "three/build/three.webgpu.nodes.js",
)
# With KEPT and RUN, and instead of the many small ones, 24 scripts of 118 MB: as many as WhatsApp Web's were when they
# were counted, and about as large. Some are near-copies of each other, like two releases of one application.
LARGE: Final = (
    "typescript/lib/_tsc.js",
    "echarts/dist/echarts.esm.js",
    "echarts/dist/echarts.common.js",
    "echarts/dist/echarts.simple.js",
    "three/build/three.webgpu.js",
    "three/build/three.tsl.js",
    "three/build/three.cjs",
    "babylonjs/babylon.es5.js",
    "babylonjs/babylon.js",
    "plotly.js-dist/plotly.js",
    "monaco-editor/dev/vs/assets/ts.worker-C2JmUdEW.js",
    "monaco-editor/esm/vs/languages/features/typescript/lib/typescriptServices.js",
    "monaco-editor/min/vs/assets/ts.worker-g3pjEjl4.js",
    "monaco-editor/dev/vs/editor-CLplJsAh.js",
    "monaco-editor/min/vs/editor-BdtEMBbM.js",
)
SMALL_FROM: Final = "three/examples/jsm"
SMALL_MIN_BYTES: Final = 6_000
SMALL_COUNT: Final = 60


@dataclass(frozen=True)
class Asset:
    """One script that the page puts into CacheStorage."""

    url: str
    body: bytes
    run: bool
    whole: bool
    """Kept by the page alone, and put as one body: Chrome then writes 512 KiB at once; else as it comes, and what comes
    goes into the HTTP cache, too.
    """

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the plain body."""
        return hashlib.sha256(self.body).hexdigest()

    @cached_property
    def gzipped(self) -> bytes:
        """The body as sent to clients that accept gzip; the same bytes in every run."""
        return gzip.compress(self.body, compresslevel=3, mtime=0)


def iter_assets(node_modules: Sequence[Path], *, large: bool) -> Iterator[tuple[str, Path, bool]]:
    """Yield (name, path, run) of each script to serve, from the first of *node_modules* that has it."""
    for names, run in ((RUN, True), (KEPT, False), (LARGE if large else (), False)):
        for name in names:
            found = [root / name for root in node_modules if (root / name).exists()]
            yield name, (found or [node_modules[0] / name])[0], run
    if large:
        return
    root = node_modules[0]
    small = (path for path in sorted((root / SMALL_FROM).rglob("*.js")) if path.stat().st_size >= SMALL_MIN_BYTES)
    yield from ((path.relative_to(root).as_posix(), path, False) for path in islice(small, SMALL_COUNT))


def load_assets(node_modules: Sequence[Path], *, large: bool) -> dict[str, Asset]:
    """Read the scripts; the keys are URL paths. Raises FileNotFoundError when `npm ci` has not run."""
    assets: dict[str, Asset] = {}
    for name, path, run in iter_assets(node_modules, large=large):
        url = f"/static/{name.replace('/', '~')}"
        assets[url] = Asset(url, path.read_bytes(), run, whole=large)
    return assets


def make_tls_context() -> tuple[ssl.SSLContext, str]:
    """A context with a new self-signed certificate, and the base64 SHA-256 of its public key (SPKI) for Chrome."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST), loopback]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as pem:  # the ssl module reads keys from files only
        pem.write(private + cert.public_bytes(serialization.Encoding.PEM))
        pem.flush()
        context.load_cert_chain(pem.name)
    return context, base64.b64encode(hashlib.sha256(spki).digest()).decode()


class PageServer(ThreadingHTTPServer):
    """Serves the page's own files and the assets; one thread a connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, context: ssl.SSLContext, assets: Mapping[str, Asset]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        # The handshake happens at the first read, in the connection's own thread, not in accept.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.assets = assets
        listing = [
            {"url": a.url, "sha256": a.sha256, "bytes": len(a.body), "run": a.run, "whole": a.whole}
            for a in assets.values()
        ]
        self.listing = json.dumps(listing).encode()

    def handle_error(self, request: object, client_address: object) -> None:
        """A Chrome that is killed drops its connections: no news. Anything else goes to stderr."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typeshed names narrower types


class Handler(BaseHTTPRequestHandler):
    """GET only."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: PageServer

    def do_GET(self) -> None:
        """Answer with a page file, the list of assets, an asset, or 404."""
        path = self.path.partition("?")[0]
        asset = self.server.assets.get(path)
        if asset is not None:
            self._send_asset(asset)
        elif path == "/assets.json":
            self._send(self.server.listing, "application/json", {"Cache-Control": "no-store"})
        else:
            self._send_page(path)

    def _send_asset(self, asset: Asset) -> None:
        kept = "no-store" if asset.whole else "public, max-age=31536000, immutable"
        headers = {"Cache-Control": kept, "ETag": f'"{asset.sha256}"'}
        body = asset.body
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = asset.gzipped
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        self._send(body, "text/javascript; charset=utf-8", headers)

    def _send_page(self, path: str) -> None:
        types = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
        file = PAGE_DIR / ("index.html" if path == "/" else path.removeprefix("/"))
        if file.parent != PAGE_DIR or file.suffix not in types or not file.is_file():
            self._send(b"not here", "text/plain", {}, status=404)
            return
        self._send(file.read_bytes(), types[file.suffix], {"Cache-Control": "no-cache"})

    def _send(self, body: bytes, content_type: str, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def main() -> None:
    """Serve until standard input closes, so that no server outlives the test run that started it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, nargs="+")
    parser.add_argument("--assets", choices=("core", "large"), default="core")
    args = parser.parse_args()
    assets = load_assets(args.node_modules, large=args.assets == "large")
    context, spki = make_tls_context()
    server = PageServer(context, assets)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    total = sum(len(asset.body) for asset in assets.values())
    ready = {"port": server.server_address[1], "spki": spki, "assets": len(assets), "asset_bytes": total}
    print(json.dumps(ready), flush=True)
    while os.read(0, 4096):
        pass


if __name__ == "__main__":
    main()
