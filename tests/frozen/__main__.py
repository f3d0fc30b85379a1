"""`python -m tests.frozen record|compare FILE`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}

import torch

import tests.frozen
from tests.frozen.cases import Case, chosen, write_inputs
from tests.frozen.comparison import Outputs, differences, word_differences
from tests.frozen.recording import record_all


def main() -> int:
    """Record or compare. Exit 0 where nothing differs, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.frozen", description=tests.frozen.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="the record, JSON; the outputs lie beside it, in FILE.outputs")
    parser.add_argument("--only", default="", metavar="PATTERN", help="compare only cases whose name has this in it")
    parser.add_argument("--words", action="store_true", help="a changed sentence fails too")
    asked = parser.parse_args()
    if not (cases := chosen(asked.only)):
        parser.error(f"no case has {asked.only!r} in its name")
    before = json.loads(asked.file.read_text()) if asked.what == "compare" else {}
    kept = asked.file.with_name(f"{asked.file.name}.outputs").absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loraport-frozen-") as name:
        folder = Path(name)
        os.environ["LORAPORT_CACHE"] = str(folder / "user-cache")
        write_inputs(folder)
        record = record_all(cases, folder)
        if asked.what == "compare":
            ran = record["cases"]
            fits = {part: {name: before[part][name] for name in before[part] if not asked.only or name in ran}
                    for part in before}  # fmt: skip
            return report(fits, record, (kept, folder), asked.words)
        asked.file.write_text(json.dumps(record, indent=1, ensure_ascii=False))
        keep_outputs(record, folder, kept)
        print(f"{len(record['cases'])} cases in {asked.file}")
        return 0


def report(before: dict[str, Any], now: dict[str, Any], outputs: Outputs, words: bool) -> int:
    """Print what differs; 1 where something fails."""
    spoken = word_differences(before["words"], now["words"])
    frozen = differences(before["cases"], now["cases"], outputs)
    for title, found in (("words (these fail only with --words)", spoken), ("frozen outputs", frozen)):
        print(f"{title}: {len(found) or 'no'} differences in {len(now['cases'])} cases")
        print("".join(f"  {one}\n" for one in found), end="")
    return int(bool(frozen or (words and spoken)))


def keep_outputs(record: dict[str, Any], folder: Path, kept: Path) -> None:
    """Copy what the cases wrote, so that a later comparison can say how far tensors are apart."""
    shutil.rmtree(kept, ignore_errors=True)
    for name in record["cases"]:
        inner = Case(name, ()).folder
        shutil.copytree(folder / inner, kept / inner)


if __name__ == "__main__":
    sys.exit(main())
