"""ComfyUI itself, from a checkout, on the processor: started on a free port, spoken to as its page does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHIMS = Path(__file__).parent / "shims"
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
"""The Python that has ComfyUI's requirements."""


class Server:
    """A running ComfyUI, whose models, custom nodes and results lie in a folder of their own."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.folder = folder
        self.nodes = folder / "custom_nodes" / "loraport"
        self.nodes.parent.mkdir(parents=True, exist_ok=True)
        self.nodes.symlink_to(ROOT / "comfyui", target_is_directory=True)
        settings = folder / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text('{"Comfy.TutorialCompleted": true, "Comfy.Minimap.Visible": false}')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "server.log"
        own = [str(ROOT / "src"), str(ROOT / "lab" / "src")]
        own += [] if _has_torchvision() else [str(SHIMS)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own), "LORAPORT_CACHE": str(folder / "cache")}
        command = [PYTHON, "main.py", "--cpu", "--disable-api-nodes", "--port", str(self.port)]
        command += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)

    def wait(self, seconds: float = 240) -> None:
        """Return when it answers. Raises RuntimeError with the end of its log if it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.call("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, path: str, body: object = None) -> Any:
        """The answer to a request, as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.loads(error.read() or b"{}")}
        return json.loads(text) if text else {}

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a workflow in the API's format; returns its id."""
        answer = self.call("/prompt", {"prompt": prompt})
        if "prompt_id" not in answer:
            raise AssertionError(f"refused: {answer}")
        return str(answer["prompt_id"])

    def finished(self, prompt_id: str, seconds: float = 120) -> dict[str, Any]:
        """What became of a workflow, when it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.call(f"/history/{prompt_id}")
            if prompt_id in history:
                found: dict[str, Any] = history[prompt_id]
                return found
            time.sleep(0.2)
        raise AssertionError(f"not finished after {seconds:.0f} s:\n{self.log.read_text()[-4000:]}")

    def run(self, prompt: Mapping[str, Any]) -> dict[str, str]:
        """The texts that the nodes of a workflow show. Raises AssertionError with the message of one that fails."""
        ended = self.finished(self.queue(prompt))
        if (message := failure(ended)) is not None:
            raise AssertionError(message)
        return {node: shown["text"][0] for node, shown in ended["outputs"].items() if "text" in shown}


def failure(ended: Mapping[str, Any]) -> str | None:
    """The message of the node that failed; None where none did."""
    for kind, facts in ended["status"]["messages"]:
        if kind == "execution_error":
            return str(facts["exception_message"])
    return None


@contextmanager
def comfyui(checkout: Path, folder: Path) -> Iterator[Server]:
    """A server for as long as it is needed."""
    server = Server(checkout, folder)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def _has_torchvision() -> bool:
    return subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0
