"""The gate before the page's server: which requests get in at all.

Gradio's server can do more than this page needs: fetch other addresses for a visitor, pass requests on to other
servers, keep histories on the Hub. Only what the page uses is let through.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loraport.app.limits import Limits
from loraport.errors import InputError
from loraport.plain_json import json_text

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_PAGE = ("config", "theme.css", "assets/", "static/", "svelte/", "favicon.ico", "robots.txt", "results/")
_API = (
    *("info", "openapi.json", "queue/join", "queue/data", "heartbeat/", "upload", "upload_progress", "file="),
    *("call/", "run/", "cancel", "reset", "startup-events", "app_id", "theme.css", "login_check"),
)
"""Below /gradio_api/"""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""How an address begins; no path of this machine does (of a drive of Windows a single letter does)."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_BODY = 1 << 20
"""Bytes of a request that is no upload."""
_AROUND = 1 << 16
"""Bytes of an upload beside the file itself."""
_SECURITY = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""The browser itself then asks no other address, whatever a part of the page would like to load."""


@dataclass(frozen=True)
class RefusedError(Exception):
    """A request that does not get in."""

    code: int
    why: str


class Gate:
    """Refuses requests, and passes all others on to the server behind."""

    def __init__(self, app: Application, limits: Limits, folder: Path, *, loopback: bool, mcp: bool) -> None:
        """Guard `app`; `loopback`: it is reached by the machine's own names only."""
        self._app, self._limits, self._folder = app, limits, folder
        self._loopback = loopback
        self._api = (*_API, *(("mcp",) if mcp else ()))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope, headers)
            if scope["method"] == "POST":
                receive = await self._checked_body(scope["path"], headers, receive)
        except RefusedError as refusal:
            await _refuse(send, refusal)
            return
        try:
            await self._app(scope, receive, _with_headers(send, scope["path"]))
        except Exception:  # the server's own log is off: it takes every open tab for an error when the page ends
            traceback.print_exc()
            raise

    def _check(self, scope: Message, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self._loopback and _name(f"//{host}") not in LOOPBACK:  # another site's name that was bent to this machine
            raise RefusedError(403, f"this page is served to this machine only, not under the name {host!r}")
        origin = headers.get("origin")
        own = origin == "null" and scope["method"] == "GET" and scope["path"].startswith("/results/")  # a page's frame
        if origin is not None and urlsplit(origin).netloc != host and not own:
            raise RefusedError(403, "another site may not use this page")
        path = unquote(scope["path"]).lstrip("/")
        if path.startswith("gradio_api/"):
            path = path.removeprefix("gradio_api/")
            self._check_known(path, self._api)
            if path.startswith("file=") and _ADDRESS.match(path.removeprefix("file=").lstrip("/")):
                raise RefusedError(403, "this page fetches nothing from other addresses")
        elif path:
            self._check_known(path, _PAGE)

    def _check_known(self, path: str, known: tuple[str, ...]) -> None:
        for start in known:
            if path == start or path.startswith(start if start.endswith(("/", "=")) else f"{start}/"):
                return
        raise RefusedError(404, "there is no such page")

    async def _checked_body(self, path: str, headers: dict[str, str], receive: Receive) -> Receive:
        """Check what is posted. An upload is counted while it passes; all else is small and read at once."""
        if unquote(path).strip("/") == "gradio_api/upload":
            return self._counted(receive, _length(headers))
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return _again([message], receive)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _BODY:
                raise RefusedError(413, "the request is too large")
        if names_address(body):
            raise RefusedError(
                403, "this page fetches no files from other addresses: upload the file, or name a Hub id"
            )
        return _again([{"type": "http.request", "body": body, "more_body": False}], receive)

    def _counted(self, receive: Receive, length: int) -> Receive:
        """Return what gives an upload on, until it is larger than one may be."""
        self._check_size(length)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limits.upload + _AROUND:
                return {"type": "http.disconnect"}
            return message

        return counted

    def _check_size(self, length: int) -> None:
        try:
            self._limits.check_upload(max(0, length - _AROUND), self._folder)
        except InputError as error:
            raise RefusedError(413, str(error)) from error


def names_address(body: bytes) -> bool:
    """Return whether a request names, as the path of a file, an address that the server would fetch."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if isinstance(one.get("path"), str) and _ADDRESS.match(one["path"]):
                return True
            left += one.values()
        elif isinstance(one, list):
            left += one
    return False


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _length(headers: dict[str, str]) -> int:
    """Return how long an upload says it is. Raises RefusedError for one that does not say: it could fill the disk."""
    text = headers.get("content-length", "")
    if not text.isdecimal():
        raise RefusedError(411, "an upload has to say how long it is")
    return int(text)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Return what gives these messages first, then those that follow."""
    rest = [*messages]

    async def again() -> Message:
        return rest.pop(0) if rest else await receive()

    return again


def _with_headers(send: Send, path: str) -> Send:
    """Return what adds the headers that keep a browser from asking other addresses; results bring their own."""
    if path.startswith("/results/"):
        return send

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_SECURITY]
        await send(message)

    return sent


async def _refuse(send: Send, refusal: RefusedError) -> None:
    body = json_text({"detail": refusal.why, "error": refusal.why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
