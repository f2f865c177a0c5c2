"""A server on localhost that speaks the part of the hub's HTTP interface that downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by kind and name, and what was asked of the server.

    Attributes:
        repositories: Files by `models/ORG/REPO` or `datasets/ORG/REPO`.
        gated: Repositories whose terms were not accepted.
        requests: Method and path of every request.
        cut: Number of bytes after which the next download is cut.
        sends_tags: Whether files have an ETag.
        sends_ranges: Whether a part of a file can be asked for.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    cut: int | None = None
    sends_tags: bool = True
    sends_ranges: bool = True

    @property
    def downloads(self) -> list[str]:
        """Paths of the files that were downloaded."""
        return [
            at.split(" ", 1)[1]
            for at in self.requests
            if at.startswith("GET") and "/resolve/" in at
        ]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if match := re.fullmatch(
                r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/(.+))?", path
            ):
                self.describe(match[1], match[2])
            elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                kind = "datasets" if match[1] else "models"
                self.send_file(f"{kind}/{match[2]}", match[4])
            elif match := re.fullmatch(r"/plain/(.+)", path):
                query = urlsplit(self.path).query
                self.send_file("plain", match[1] + (f"?{query}" if query else ""))
            else:
                self.fail(404, "EntryNotFound")

        def describe(self, name: str, revision: str | None) -> None:
            if name in hub.gated:
                self.fail(403, "GatedRepo")
            elif name not in hub.repositories:
                self.fail(401, "RepoNotFound")
            elif revision not in (None, "main", "v1", SHA):
                self.fail(404, "RevisionNotFound")
            else:
                files = hub.repositories[name]
                siblings = [{"rfilename": at, "size": len(data)} for at, data in files.items()]
                document = {"id": name.split("/", 1)[1], "sha": SHA, "siblings": siblings}
                self.send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def send_file(self, repository: str, name: str) -> None:
            data = hub.repositories.get(repository, {}).get(name)
            if data is None:
                self.fail(404, "EntryNotFound")
                return
            headers = {"X-Repo-Commit": SHA}
            if hub.sends_tags:
                headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
            if hub.sends_ranges:
                headers["Accept-Ranges"] = "bytes"
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part is None or not hub.sends_ranges:
                self.send(200, data, headers)
                return
            begin, end = int(part[1]), int(part[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{min(end, len(data) - 1)}/{len(data)}"
            self.send(206, data[begin : end + 1], headers)

        def fail(self, status: int, code: str) -> None:
            self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut is not None and status in (200, 206) and len(data) > hub.cut:
                self.wfile.write(data[: hub.cut])
                hub.cut = None
                self.close_connection = True
                return
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
