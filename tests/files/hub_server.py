"""A stand-in for the Hub on loopback: the few addresses that the real client asks for, over files in a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class HubServer:
    """Serves `folder/<org>/<repo>/...` as model repositories; `requests` lists what was asked for.

    `breaks` says after how many bytes the first transmission of a file breaks off; `ranges` lists what was asked again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, []
        self.breaks: dict[str, int] = {}
        self.ranges: list[tuple[str, str]] = []
        self.sent: dict[str, int] = {}
        """Name of a file -> how many of its bytes were sent."""
        self.commits: list[dict[str, object]] = []
        """Every commit: its repository, its header, and the names of its files."""
        self.refuses: dict[str, int] = {}
        """The end of an address that is written to -> the status that it is refused with."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloaded(self) -> list[str]:
        """The files whose contents were sent."""
        return sorted(
            {
                path.split(f"/resolve/{COMMIT}/")[-1]
                for verb, path in self.requests
                if verb == "GET" and "/resolve/" in path
            }
        )


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        """What is written: files in one commit (never as large files: their store is another server), repositories."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.requests.append(("POST", path))
        parts = path.strip("/").split("/")
        status = next((code for end, code in self.hub.refuses.items() if end in path), None)
        if status is not None:
            self._send(status, b'{"error": "refused"}', {"Content-Type": "application/json"}, True)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            (self.hub.folder / repo).mkdir(parents=True)
            (self.hub.folder / repo / ".gitattributes").write_text("")
            self._json({"url": f"{self.hub.address}/{repo}", "private": wanted.get("private")})
        elif parts[4:5] == ["preupload"]:
            names = [file["path"] for file in json.loads(content)["files"]]
            self._json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            self._commit("/".join(parts[2:4]), content)

    def _commit(self, repo: str, content: bytes) -> None:
        lines = [json.loads(line) for line in content.splitlines()]
        files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
        proposed = "create_pr=1" in self.path
        self.hub.commits.append({"repo": repo, **lines[0]["value"], "files": sorted(files), "proposed": proposed})
        for name, data in files.items() if not proposed else ():
            place = self.hub.folder / repo / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        address = f"{self.hub.address}/{repo}"
        proposal = {"pullRequestUrl": f"{address}/discussions/1"} if proposed else {}
        self._json({"success": True, "commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT, **proposal})

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]), parts[4] if len(parts) > 4 else "")
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(self.hub.folder / "/".join(parts[:2]) / "/".join(parts[4:]), body)
        else:
            self._send(404, b"{}", {}, body)

    def _listing(self, repo: str, kind: str) -> None:
        root = self.hub.folder / repo
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
        if not files:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, True)
            return
        names = [path.relative_to(root).as_posix() for path in files]
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path)}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes"}
        content, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted is None or not body:
            self.hub.sent[path.name] = self.hub.sent.get(path.name, 0) + len(content) * body
            self._send(200, content, headers, body, self.hub.breaks.pop(path.name, None) if body else None)
            return
        self.hub.ranges.append((path.name, wanted))
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.hub.sent[path.name] = self.hub.sent.get(path.name, 0) + len(part)
        self._send(206, part, headers, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool, breaks: int | None = None) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:breaks])
        if breaks is not None:
            self.close_connection = True
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
