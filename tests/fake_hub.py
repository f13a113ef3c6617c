"""A hub of models on loopback: the part of the Hugging Face hub's interface that sharing uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """Repositories by name, each a list of commits with all files; who writes needs ``token``."""

    token: str = "hf_right"
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    broken: bool = False


def _commit(hub: Hub, repo: str, lines: str) -> None:
    commits = hub.repositories[repo]
    files = dict(commits[-1]) if commits else {}
    for line in filter(None, lines.split("\n")):
        entry = json.loads(line)
        if entry["key"] == "file":
            files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
    commits.append(files)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, code: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def tell(self, answer: Any, code: int = 200) -> None:
            self.answer(code, json.dumps(answer).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length")
            text = self.rfile.read(int(size)).decode() if size else self._chunks()
            hub.asked.append(f"POST {self.path}")
            if hub.broken:
                return self.tell({"error": "down"}, 503)
            if self.path == "/api/validate-yaml":
                return self.tell({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.tell({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                given = json.loads(text)
                repo = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
                if repo in hub.repositories:
                    return self.tell({"url": f"http://{self.headers['Host']}/{repo}"}, 409)
                hub.repositories[repo] = []
                hub.made.append(given)
                return self.tell({"url": f"http://{self.headers['Host']}/{repo}"})
            repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()  # pyright: ignore[reportOptionalMemberAccess]
            if action == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(text)["files"]
                ]
                return self.tell({"files": files})
            _commit(hub, repo, text)
            return self.tell({"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/1", "commitOid": "1" * 40})

        def _chunks(self) -> str:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts).decode()

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if hub.broken:
                return self.tell({"error": "down"}, 503)
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if not found:
                return self.tell({"error": "not found"}, 404)
            repo, revision, name = found.groups()
            if repo in hub.gated:
                return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
            commits = hub.repositories.get(repo)
            if commits is None:
                return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
            ids = [hashlib.sha1(f"{repo} {i}".encode()).hexdigest() for i in range(len(commits))]
            if revision not in ("main", *ids):
                return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
            index = ids.index(revision) if revision in ids else len(ids) - 1
            if name not in commits[index]:
                return self.answer(
                    404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=ids[index]
                )
            content = commits[index][name]
            return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=ids[index])

    return Handler


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Serve a hub on a free port of loopback; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
