"""Headless Chromium, and what its console says of a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page was not opened in a browser")


def browser_says(path: Path, profile: Path) -> str:
    """What Chromium's console prints while it shows the page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "</html>" in done.stdout
    return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def foreign_addresses(html: str) -> list[str]:
    """Everything that a page refers to outside itself."""
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s)>]+)', html)
    return [address for address in addresses if not address.startswith(("data:", "#"))]
