"""A real browser, steered through a pipe: pages are opened, files chosen, buttons pressed, requests written down."""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path

from tests.reports.browser import CHROMIUM

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--remote-debugging-pipe", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


class Browser:
    """Chromium with one tab."""

    def __init__(self, profile, width=1280, height=1000):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._rest, self.requests, self.said = 0, b"", [], []
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method, **values):
        """Give an order and return the answer; events that come meanwhile are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next(60.0)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]

    def _next(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._read, 1 << 16)
        line, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(line)
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["params"]["request"]["url"])
        elif told.get("method") == "Runtime.exceptionThrown":
            self.said.append(told["params"]["exceptionDetails"]["text"])
        elif told.get("method") == "Runtime.consoleAPICalled" and told["params"]["type"] == "error":
            self.said.append(str([one.get("value", one.get("description")) for one in told["params"]["args"]]))
        return told

    def resize(self, width, height):
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )  # fmt: skip

    def prefer(self, scheme):
        """Make the page light or dark, as the system's setting would."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, address, ready="#transfer"):
        self.call("Page.navigate", url=address)
        self.until(f"!!document.querySelector({json.dumps(ready)})", 40)

    def ask(self, script):
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, script, seconds=30):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.ask(script):
            assert time.monotonic() < end, f"never true: {script}\n{self.ask('document.body.innerText')}"
            time.sleep(0.1)

    def text(self, selector):
        return self.ask(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''")

    def choose_file(self, selector, path: Path):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def type(self, selector, text):
        """Type into a field, as a keyboard does, and leave it."""
        self.ask(f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus(); "
                 "field.select && field.select(); })()")  # fmt: skip
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
        self.ask(f"document.querySelector({json.dumps(selector)}).blur()")

    def click(self, selector):
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    def picture(self, path: Path, whole=True):
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
