"""One transfer from files to a file at real shapes, cold and warm: seconds, memory, size of the cache.

    python benchmarks/synthetic.py /tmp/wan && python benchmarks/transfer.py /tmp/wan

Runs the command line in a process of its own and writes benchmarks/results/transfer.json with the machine and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def run(folder: Path, output: Path, cache: Path, method: str) -> dict[str, object]:
    """One run: wall and CPU seconds, peaks of anonymous and resident memory, bytes read, the result's numbers."""
    command = [sys.executable, "-m", "loraport", "transfer", str(folder / "lora.safetensors"), "--json",
               "--source", str(folder / "source"), "--target", str(folder / "target"), "-o", str(output),
               "--cache", str(cache), "--method", method]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"anonymous": 0, "resident": 0, "cpu": 0.0, "read": 0}
    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peaks), daemon=True)
    watcher.start()
    out, _ = process.communicate()
    wall = time.perf_counter() - start
    result = json.loads(out)
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(peaks["cpu"], 1),
        "peak_anonymous_bytes": peaks["anonymous"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "bytes_read": peaks["read"],
        "kept_energy": result["kept_energy"],
        "kept_correction": result["kept_correction"],
        "layers": len(result["layers"]),
        "median_k": sorted(layer["k"] or 0 for layer in result["layers"])[len(result["layers"]) // 2],
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }


def watch(process: psutil.Process, peaks: dict[str, float]) -> None:
    """Sample a process until it ends."""
    while True:
        try:
            memory = process.memory_info()
            times = process.cpu_times()
            peaks["read"] = process.io_counters().read_chars
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            return
        anonymous = memory.rss - memory.shared
        peaks["anonymous"] = max(peaks["anonymous"], anonymous)
        peaks["resident"] = max(peaks["resident"], memory.rss)
        peaks["cpu"] = times.user + times.system
        time.sleep(0.2)


def main() -> None:
    """Cold, warm, and direct reuse as the floor of what reading and writing cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    cache = given.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    rows = {}
    for name, method in (("cold", "casa"), ("warm", "casa"), ("direct", "direct")):
        rows[name] = run(given.folder, given.folder / f"{name}.safetensors", cache, method)
        print(name, json.dumps(rows[name]), flush=True)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    machine = {
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": machine,
        "runs": rows,
        "cache_bytes": size,
        "same_bytes": rows["cold"]["sha256"] == rows["warm"]["sha256"],
    }
    (RESULTS / "transfer.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"cache {size / 1e9:.2f} GB; cold and warm agree byte for byte: {result['same_bytes']}")


if __name__ == "__main__":
    main()
