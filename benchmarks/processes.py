"""A command as a process of its own: wall and CPU time, peaks of memory, bytes read and written."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch


class FailedError(RuntimeError):
    """A measured command that did not end well."""


def measured(command: Sequence[str], *, threads: int, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run it to its end and say what it took; `stdout` is what it printed. Raises FailedError with its last words."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **limits, **(env or {})}
    )
    peaks: dict[str, float] = {"anonymous": 0, "resident": 0, "cpu": 0.0, "read": 0, "written": 0}
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peaks), daemon=True)
    watcher.start()
    out, err = process.communicate()
    wall = time.perf_counter() - start
    watcher.join(1)
    if process.returncode not in (0, 3):
        raise FailedError(f"{' '.join(command[:4])} … ended with {process.returncode}: {err[-2000:]}")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(peaks["cpu"], 2),
        "peak_anonymous_bytes": int(peaks["anonymous"]),
        "peak_rss_bytes": int(peaks["resident"]),
        "bytes_read": int(peaks["read"]),
        "bytes_written": int(peaks["written"]),
        "stdout": out,
    }


def _watch(process: psutil.Process, peaks: dict[str, float]) -> None:
    """Sample cheap counters until the process ends; full memory maps would cost more than the work itself."""
    while True:
        try:
            memory, times, io = process.memory_info(), process.cpu_times(), process.io_counters()
        except psutil.Error:
            return
        peaks["anonymous"] = max(peaks["anonymous"], memory.rss - memory.shared)
        peaks["resident"] = max(peaks["resident"], memory.rss)
        peaks["cpu"] = times.user + times.system
        peaks["read"], peaks["written"] = io.read_chars, io.write_chars
        time.sleep(0.05)


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy that was."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }
