"""The server: it listens on one address, shows the page and results, and takes everything with it when it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from loraport.app.asks import Machine
from loraport.app.gate import LOOPBACK, Gate
from loraport.app.jobs import Office
from loraport.app.limits import Limits
from loraport.app.places import Places
from loraport.app.work_folder import WorkFolder, remove
from loraport.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SWEEP = 600.0
"""Seconds between two rounds of cleaning."""
_RESULT = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob: {origin}; media-src data: blob: {origin}; connect-src {origin}/results/; "
    "frame-ancestors {origin}"
)
"""Of pages that the program wrote: they run their own scripts, show their own files, and reach nothing else."""


@dataclass(frozen=True)
class Service:
    """What is served, where, and to whom."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0 takes a free one."""
    shared: tuple[str, ...] = ()
    work: str | None = None
    """Where uploads and results lie meanwhile; None takes the system's folder for such files."""
    mcp: bool = False
    limits: Limits = field(default_factory=Limits)
    machine: Machine = field(default_factory=Machine)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK or self.host.startswith("127.")


class Server:
    """The page while it is served."""

    def __init__(self, service: Service) -> None:
        """Take the address, and make the page. Raises InputError and OutputError for what is not to be had."""
        self.service = service
        places = Places.at(service.shared)
        self._socket = _listen(service.host, service.port)
        self.port = self._socket.getsockname()[1]
        try:
            self.folder = WorkFolder.made(service.work)
            self._held = self.folder.hold()
            self.office = Office(places, self.folder, service.limits, service.machine)
            self._uvicorn = self._made()
        except BaseException:
            self._socket.close()
            raise
        self._ended = threading.Event()

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        host = f"[{self.service.host}]" if ":" in self.service.host else self.service.host
        return f"http://{host}:{self.port}"

    def run(self) -> None:
        """Serve until it is stopped, then remove uploads and results."""
        sweeper = threading.Thread(target=self._sweep, daemon=True)
        sweeper.start()
        try:
            with _stopping(self.stop):
                self._uvicorn.run(sockets=[self._socket])
        finally:
            self._ended.set()
            self.office.close()
            self._socket.close()
            os.close(self._held)
            remove(self.folder.path)

    def stop(self) -> None:
        """Ask it to end."""
        self._uvicorn.should_exit = True

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        return bool(self._uvicorn.started)

    def _made(self) -> Any:
        _set_environment(self.folder)
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from loraport.app.looks import STYLE, theme
        from loraport.app.pages import build

        class Quiet(uvicorn.Server):
            """Leaves signals to whoever runs it."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Take none."""
                yield

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        show_results(app, self.folder)
        page = build(self.office)
        page.queue(max_size=None, default_concurrency_limit=None)
        gr.mount_gradio_app(
            app, page, path="/", server_name=self.service.host, server_port=self.port, footer_links=["api"],
            run_history=False, show_error=True, max_file_size=self.service.limits.upload, ssr_mode=False, pwa=False,
            enable_monitoring=False, mcp_server=self.service.mcp, theme=theme(), css=STYLE,
        )  # fmt: skip
        gate = Gate(app, self.service.limits, self.folder.path, loopback=self.service.is_loopback, mcp=self.service.mcp)
        return Quiet(
            uvicorn.Config(
                gate,
                log_level="critical",
                access_log=False,
                timeout_graceful_shutdown=1,
                server_header=False,
                lifespan="on",
            )
        )

    def _sweep(self) -> None:
        while not self._ended.wait(_SWEEP):
            self.office.sweep()


def show_results(app: FastAPI, folder: WorkFolder) -> None:
    """Let the pages of results be seen, with the files that lie beside them, by whoever knows the job's long name."""
    from fastapi import HTTPException, Request
    from fastapi.responses import FileResponse

    def show(job: str, place: str, request: Request) -> FileResponse:
        own = (folder.jobs / job).resolve()
        path = (own / place).resolve()
        is_page = path.name in _PAGES or (own / "compared") in path.parents
        if own.parent != folder.jobs.resolve() or own not in path.parents or not path.is_file() or not is_page:
            raise HTTPException(404, "there is no such result; results are removed after a while")
        rule = _RESULT.format(origin=f"{request.url.scheme}://{request.headers.get('host', '')}")
        return FileResponse(path, headers={
            "Content-Security-Policy": rule, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Access-Control-Allow-Origin": "null",  # a frame without an origin, which fetches the clips beside it
        })  # fmt: skip

    show.__annotations__ = {"job": str, "place": str, "request": Request}
    app.get("/results/{job}/{place:path}", response_model=None)(show)


_PAGES = ("report.html", "diagnosis.html")


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises InputError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{host}:{port} cannot be listened on: {why}; end what uses it, or take another one with --port (0 takes "
            "any free one) or --host"
        ) from error


def _set_environment(folder: WorkFolder) -> None:
    """Tell Gradio, which reads it when it is imported, to keep to itself and to this folder."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
        "GRADIO_TEMP_DIR": str(folder.path), "GRADIO_EXAMPLES_CACHE": str(folder.path / "examples"),
    }  # fmt: skip


@contextmanager
def _stopping(stop: Any) -> Iterator[None]:
    """Let the first Ctrl-C or kill end the server in order, and the next one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
