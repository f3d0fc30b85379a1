"""Run a case through the command line in this process, and say what came out of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from tests.frozen.cases import SPOKEN, Case

VARYING = re.compile(r"(^|_)(seconds|rss|took|elapsed|date|created)(_|$)")
"""Keys of JSON whose values are different each time."""

PLACE = re.compile(r"(?<![\w.:/])(?:/[^/\s\"'\\,;:)]+)+/")
"""An absolute folder: what lies in it keeps its name."""

TIMES = re.compile(r"\b\d+(?:\.\d+)? (?:s|GB|MB|min|ms)\b|\b\d{4}-\d\d-\d\d(?:T[\d:.]+Z?)?")
PICTURE = re.compile(r"data:[\w/+.-]+;base64,[\w+/=]+")
SENTENCE = re.compile(r"\S\s+\S+\s+\S")
WORDS = "<words>"


def sha256(data: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def run(argv: list[str]) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of `loraport ...`, on a clock that stands still."""
    from loraport.cli import main

    out, err, before, clock = io.StringIO(), io.StringIO(), sys.argv, time.perf_counter
    code: Any = 0
    sys.argv, time.perf_counter = ["loraport", *argv], lambda: 0.0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv, time.perf_counter = before, clock
    return int(code or 0), out.getvalue(), err.getvalue()


def still(value: Any) -> Any:
    """Return parsed JSON without what differs each time."""
    if isinstance(value, dict):
        return {key: still(inner) for key, inner in value.items() if not VARYING.search(key)}
    if isinstance(value, list):
        return [still(inner) for inner in value]
    return without_places(value) if isinstance(value, str) else value


def without_places(text: str) -> str:
    """Return the text with absolute places shortened to their last names, and no amounts of time, memory or dates."""
    return TIMES.sub("<amount>", PLACE.sub(".../", text))


def without_words(value: Any) -> Any:
    """Return parsed JSON with a mark in the place of each sentence: three words or more."""
    if isinstance(value, dict):
        return {key: without_words(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_words(inner) for inner in value]
    return WORDS if isinstance(value, str) and SENTENCE.search(value) else value


def laid_out(value: Any) -> str:
    """Return JSON as text of many lines, for a diff."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def described(text: str) -> dict[str, Any] | None:
    """Return {"json", "sentences"} of a text that is JSON, None of another."""
    try:
        value = still(json.loads(text))
    except ValueError:
        return None
    return {"json": laid_out(without_words(value)), "sentences": laid_out(value)}


def page(text: str) -> str:
    """Return HTML without amounts of time and memory, its pictures as digests, a tag a line."""
    pictured = PICTURE.sub(lambda found: sha256(found[0].encode())[:16], without_places(text))
    return re.sub(r">\s*<", ">\n<", pictured)


def file_record(path: Path) -> dict[str, Any]:
    """Return what is frozen of one written file."""
    data = path.read_bytes()
    if path.suffix == ".json":
        found = described(data.decode())
        if found is not None:
            return found
    if path.suffix == ".html":
        return {"page": sha256(page(data.decode()).encode())}
    return {"sha256": sha256(data)}


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the record of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): file_record(path) for path in paths}


def record_case(case: Case) -> tuple[dict[str, Any], dict[str, str]]:
    """Run a case in the working folder: (what is frozen, its words)."""
    Path(case.folder).mkdir()
    code, out, err = run([*case.argv, "--json"])
    found = described(out) or {"json": sha256(out.encode()), "sentences": out}
    frozen = {"code": code, "json": found["json"], "files": files_of(Path(case.folder))}
    words = {"stderr": without_places(err), "sentences": found["sentences"]}
    for name, one in frozen["files"].items():
        if "sentences" in one:
            words[name] = one.pop("sentences")
    if case.name in SPOKEN:
        again = Case(f"{case.name} in words", case.words)
        Path(again.folder).mkdir()
        code, out, err = run([*again.argv, "-v"])
        words |= {"spoken": without_places(f"exit {code}\n{out}"), "spoken stderr": without_places(err)}
    return frozen, words


def record_all(cases: list[Case], folder: Path) -> dict[str, Any]:
    """Run cases in a folder where the inputs lie; the record holds {"cases", "words"}."""
    here, record = Path.cwd(), {"cases": {}, "words": {}}
    os.chdir(folder)
    try:
        for number, case in enumerate(cases, 1):
            print(f"\r{number}/{len(cases)} {case.name:40}", end="", file=sys.stderr, flush=True)
            record["cases"][case.name], record["words"][case.name] = record_case(case)
        print(file=sys.stderr)
    finally:
        os.chdir(here)
    return record
