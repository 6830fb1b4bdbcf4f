"""A local hub of datasets: the part of the Hugging Face hub's HTTP interface that `datasets` uses, served from directories."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

COMMIT = "0" * 40


@contextmanager
def serving(folder):
    """The address of a hub whose repositories are `folder/<owner>/<name>`, and the list of requested paths."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": Path(folder), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # header and body in one packet: the client acknowledges the first of two 40 ms later
    folder: Path
    asked: list[str]

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer("")

    def do_HEAD(self):
        self._answer("")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _answer(self, body):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        about, parts = (True, parts[2:]) if parts[0] == "api" else (False, parts[1:])
        repository = self.folder / "/".join(parts[:2])
        if not repository.is_dir():
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        files = {str(file.relative_to(repository)): file for file in sorted(repository.rglob("*")) if file.is_file()}
        if about:
            return self._send(json.dumps(_told("/".join(parts[:2]), parts[2:], files, body)).encode())
        wanted = "/".join(parts[4:])  # resolve/<revision>/<file>
        return self._file(files[wanted]) if wanted in files else self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    def _file(self, file):
        content = file.read_bytes()
        about = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            return self._send(content, 200, about)
        stop = min(int(last) + 1 if last else len(content), len(content))
        about["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
        return self._send(content[int(first) : stop], 206, about)

    def _send(self, content, code=200, headers=None):
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _told(name, asked, files, body):
    """A repository, its files below a folder, or the files of some paths."""
    entries = [{"type": "file", "path": path, "size": file.stat().st_size, "oid": "1" * 40} for path, file in files.items()]
    if not asked or asked[0] == "revision":
        return {
            "id": name,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": path} for path in files],
        }
    if asked[0] == "tree":
        return [entry for entry in entries if entry["path"].startswith("/".join(asked[2:]))]
    wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
    return [entry for entry in entries if entry["path"] in wanted]
