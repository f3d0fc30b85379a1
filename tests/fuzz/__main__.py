"""`python -m tests.fuzz`: so many cases from a seed; prints what went wrong, with how to make it again."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import torch

from tests.fuzz.attack import attack
from tests.fuzz.kills import kill


def main() -> int:
    """Run the cases. Exit 0 where nothing went wrong, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="how many")
    parser.add_argument("--kills", type=int, default=40, help="how many commands are killed and started again, besides")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to make one again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    import loraport.cli
    import loraport.reports.analysis_page
    import loraport.transfers.run  # warm: each case is a fork of this process

    _ = loraport.cli, loraport.transfers.run, loraport.reports.analysis_page
    folder, began, found = Path(tempfile.mkdtemp(prefix="loraport-fuzz-")), time.monotonic(), 0
    endings: Counter[int] = Counter()
    attacks = attack(folder, asked.seed, range(asked.first, asked.first + asked.cases))
    kills = kill(folder / "kills", asked.seed, range(asked.first, asked.first + asked.kills))
    for finding in chain(attacks, kills):
        endings[finding.outcome.code] += 1
        if finding.faults:
            found += 1
            print(f"{finding}\n", flush=True)
        if time.monotonic() - began > asked.seconds:
            break
    shutil.rmtree(folder, ignore_errors=True)
    counts = ", ".join(f"exit {code}: {count}" for code, count in sorted(endings.items()))
    took = time.monotonic() - began
    print(f"{endings.total()} cases from seed {asked.seed} in {took:.0f} s, {found} went wrong; {counts}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
