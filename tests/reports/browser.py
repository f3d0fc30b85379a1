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
    return "\n".join(line for line in _opened(path, profile).stderr.splitlines() if "CONSOLE" in line)


def browser_shows(path: Path, profile: Path, seconds: int = 10) -> str:
    """The page's HTML as its scripts have left it after that long, of a clock that runs as fast as it can."""
    return _opened(path, profile, f"--virtual-time-budget={1000 * seconds}").stdout


def _opened(path: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", *more]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "</html>" in done.stdout
    return done


def foreign_addresses(html: str) -> list[str]:
    """Everything that a page refers to outside itself."""
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s)>]+)', html)
    return [address for address in addresses if not address.startswith(("data:", "#"))]
