"""The same array from Python, with submitit: `python submitit_shares.py loras/ wan/ fastwan/ night --shares 8`.

`--cluster local` runs the shares as processes of this machine, to try it; `pip install submitit` first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def share(number: int, of: int, words: list[str]) -> int:
    """Do one share, and return its exit code: 0, or 3 where LoRAs were put aside."""
    command = [sys.executable, "-m", "loraport", "batch", *words, "--shard", f"{number}/{of}", "--keep-going"]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    """Submit all shares, and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("loras", "source", "target", "place"):
        parser.add_argument(name)
    parser.add_argument("--shares", type=int, default=8)
    parser.add_argument("--cluster", default=None, help="None for Slurm where it is, local for processes")
    parser.add_argument("--cards", type=int, default=1, help="of each share")
    given = parser.parse_args()
    import submitit

    executor = submitit.AutoExecutor(folder="submitit-logs", cluster=given.cluster)
    executor.update_parameters(timeout_min=720, gpus_per_node=given.cards, cpus_per_task=8, mem_gb=64)
    words = [given.loras, "--source", given.source, "--target", given.target, "-o", given.place]
    with executor.batch():
        jobs = [executor.submit(share, number, given.shares, words) for number in range(given.shares)]
    codes = [job.result() for job in jobs]
    sys.exit(max(code for code in codes))


if __name__ == "__main__":
    main()
