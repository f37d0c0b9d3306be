"""A hub on loopback, for the real huggingface_hub: the part of its protocol that downloads take.

Source: huggingface_hub 1.31 and 2.4 (`HfApi.repo_info`, `HfApi.list_repo_tree`, `file_download.http_get`) and
https://huggingface.co/docs/hub/api. HF_ENDPOINT names it to a client.

    GET       /api/models/ID/revision/REVISION     the commit
    GET       /api/models/ID/tree/COMMIT           the files
    HEAD|GET  /ID/resolve/COMMIT/FILE              a file, with ETag and X-Repo-Commit; Range is honoured
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repository:
    """A model on the hub: a folder for each branch or tag. With `token`, private; `gated`, to be asked for."""

    branches: dict[str, Path]
    token: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit names; None for no such revision."""
        branches = self.branches.items()
        commits = {name: hashlib.sha1(f"{name} {folder}".encode()).hexdigest() for name, folder in branches}
        return commits.get(revision) or next((commit for commit in commits.values() if commit == revision), None)

    def folder(self, commit: str) -> Path:
        """The files of a commit."""
        return next(folder for name, folder in self.branches.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """Its port, its models by their ids, and what it was asked: method, path, and bytes asked for."""

    port: int
    models: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut_after: int | None = None
    """Each file's transfer breaks off after so many bytes."""

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def sent(self) -> list[str]:
        """The names of the files whose contents were asked for, in order."""
        files = (_FILE.fullmatch(path) for method, path, _ in self.requests if method == "GET")
        return [match["file"] for match in files if match]


def surroundings(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user with this hub, a cache in `home`, and these variables."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**others, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), **variables}


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: "_Server"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append((self.command, path, self.headers["Range"]))
        match = _API.fullmatch(path) or _FILE.fullmatch(path)
        if match is None:
            return self._refuse(404, None, "Sorry, we can't find the page you are looking for.")
        model = self.server.hub.models.get(match["id"])
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if model is None or (model.token is not None and token != model.token):
            # As the hub does: who does not say who he is does not learn whether it is there.
            return self._refuse(*((404, "RepoNotFound") if token else (401, None, "Invalid username or password.")))
        if model.gated:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted.")
        commit = model.commit(match["revision"])
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        folder = model.folder(commit)
        if "file" in match.groupdict():
            return self._file(folder / match["file"], commit)
        return self._json({"id": match["id"], "sha": commit} if match["what"] == "revision" else _tree(folder))

    def _file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        body = path.read_bytes()
        first = int(range_.removeprefix("bytes=").rstrip("-")) if (range_ := self.headers["Range"]) else 0
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(body)}"', "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return self._send(206 if first else 200, body[first:], headers, self.server.hub.cut_after)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str = "not found") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], most: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:most])
            self.close_connection = most is not None

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' screen."""


def _tree(folder: Path) -> list[dict]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        {
            "type": "file",
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "oid": _oid(path.read_bytes()),
        }
        for path in files
    ]


def _oid(body: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class _Server(ThreadingHTTPServer):
    hub: Hub


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on a free port of 127.0.0.1."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
