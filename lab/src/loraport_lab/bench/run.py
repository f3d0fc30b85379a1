"""The whole lab: every row on every cell, in several processes, from parts that survive a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

import loraport
import loraport_lab
from loraport.digests import text_digest
from loraport.errors import SettingsError
from loraport.progress import NO_PROGRESS, Progress
from loraport_lab.bench.admission import Admission
from loraport_lab.bench.calibration import calibration_rows, companions
from loraport_lab.bench.evaluate import SHOWN, RowResult, Session
from loraport_lab.bench.material import Cell, Material, all_cells
from loraport_lab.bench.rows import Row, rows_of
from loraport_lab.bench.store import Store
from loraport_lab.family.clips import draw_prompts, render_effect, to_latents
from loraport_lab.family.family import FAMILY
from loraport_lab.family.judge import open_judge
from loraport_lab.family.model import LATENT_SHAPE
from loraport_lab.family.pair import prompts_in_words
from loraport_lab.family.sample import as_frames
from loraport_lab.training.fit import generator_for
from loraport_lab.workers import workers

CLIPS = 48
REAL_CLIPS = 1024  # procedural clips with the effect, for the Fréchet distance


@dataclass(frozen=True)
class CellResult:
    """What was measured on one cell, and whether it can tell methods apart."""

    cell: Cell
    admission: Admission
    rows: dict[str, RowResult]
    real: Tensor
    """Texture features of procedural clips with the effect: [REAL_CLIPS, 48]."""
    reference: Tensor
    """The first clips of base + adapter, as frames."""
    prompts: tuple[str, ...]
    """Of each clip that the rows' values are measured on."""
    end_prompts: tuple[str, ...]
    """The same for the end error, which has clips of its own."""
    premises: Mapping[str, Tensor]
    """One value a layer of each of the method's premises: [layers]."""

    def prompts_of(self, metric: str) -> tuple[str, ...]:
        """Return the prompt of each clip behind a metric's values."""
        return self.end_prompts if metric == "end" else self.prompts


@dataclass(frozen=True)
class LabResult:
    """A finished lab."""

    cells: tuple[CellResult, ...]
    clips: int
    made_from: str
    prompts: Tensor
    """Of the clips that are shown."""


def run_lab(
    folder: Path,
    *,
    family: Path = FAMILY,
    cells: Sequence[str] = (),
    clips: int = CLIPS,
    calibration: bool = False,
    jobs: int = 2,
    progress: Progress = NO_PROGRESS,
) -> LabResult:
    """Measure all rows of the cells whose names fit one of the patterns (all without any); parts are kept in `folder`.

    `calibration` adds the rows that are fitted by sampling, which take longer than all others.

    Raises SettingsError for a pattern that fits nothing, InputError for a family with missing files.
    """
    materials = [
        Material(cell, family, folder / "parts", companions(cell) if calibration else ())
        for cell in _chosen(all_cells(), cells)
    ]
    code = code_digest()
    sessions = [_session(material, folder / "parts", code, clips, calibration) for material in materials]
    sessions_by_work = sorted(sessions, key=work, reverse=True)  # a long cell that starts last would be waited for
    first = list({session.material.cell.adapter.name: session for session in sessions}.values())
    with workers(jobs) as submit:
        done, total = 0, len(first) + len(sessions)
        for make, members in ((_make_references, first), (_make_rows, sessions_by_work)):
            for future in as_completed([submit(make, session) for session in members]):
                done += 1
                progress.advance(f"lab, last done {future.result()}", done, total)
    return LabResult(
        tuple(map(collect, sessions)),
        clips,
        text_digest(*(session.store.made_from for session in sessions)),
        sessions[0].evaluation.prompts,
    )


def _session(material: Material, folder: Path, code: str, clips: int, calibration: bool) -> Session:
    parts, references = (f"{material.digest(reference=reference)} {code}" for reference in (False, True))
    return Session(material, Store(folder, parts), Store(folder, references), clips, calibration)


def all_rows(session: Session) -> tuple[Row, ...]:
    """Return the rows of a cell, the frame first."""
    return (*rows_of(session.material.cell), *(calibration_rows(session.material) if session.calibration else ()))


def work(session: Session) -> float:
    """Return about how many evaluations of the network a clip takes in all rows; cells differ by a factor of twenty."""
    student = session.material.cell.student
    frames = (LATENT_SHAPE[1] + 1) / 2 if student.sampler == "streaming" else 1  # the mean of how many are seen
    return len(all_rows(session)) * len(student.steps) * frames


def _chosen(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    for pattern in patterns:
        if not any(_fits(cell, pattern) for cell in cells):
            names = ", ".join(cell.name for cell in cells)
            raise SettingsError(f"pattern {pattern!r} fits no cell of the lab; there are: {names}")
    return [cell for cell in cells if not patterns or any(_fits(cell, pattern) for pattern in patterns)]


def _fits(cell: Cell, pattern: str) -> bool:
    """Return whether a pattern is the cell's student, its adapter, both, or one with `*` that matches any of these."""
    return any(fnmatchcase(name, pattern) for name in (cell.student.name, cell.adapter.name, cell.name))


def _make_references(session: Session) -> str:
    _ = session.references, session.admission_reference
    return f"base + {session.material.cell.adapter.name}"


def _make_rows(session: Session) -> str:
    _ = session.admission, session.premises
    for row in all_rows(session):
        session.run(row)
    return session.material.cell.name


def collect(session: Session) -> CellResult:
    """Collect a cell's finished rows."""
    rows = {row.name: session.run(row) for row in all_rows(session)}
    features = _real_features(session.material.cell.adapter.effect, session.material.family)
    reference = as_frames(to_latents(session.references[0][:SHOWN]))
    prompts, end_prompts = session.evaluation.words, prompts_in_words(session.end_clips)
    return CellResult(
        session.material.cell, session.admission, rows, features, reference, prompts, end_prompts, session.premises
    )


@lru_cache(maxsize=16)
def _real_features(effect: str, family: Path) -> Tensor:
    """Return texture features of procedural clips with the effect, which cells with the same effect share."""
    rng = generator_for(0, "lab", "real", effect)
    clips = render_effect(draw_prompts(REAL_CLIPS, rng), rng, effect)
    return open_judge(family).style_features(clips).detach()


SUMMARIES = ("agreement.py", "regret.py", "run.py", "statistics.py", "tables.py")
"""Modules of the benchmark that only sum up what was measured: a change in them makes no part anew."""


ROOMS = ("spectral", "methods", "analysis", "sampling")
"""Folders of loraport that the parts depend on."""


def code_digest() -> str:
    """One hash over the program's code and PyTorch's version: what the parts depend on besides files and seeds."""
    packages = Path(loraport.__file__).parent, Path(loraport_lab.__file__).parent
    files = [
        path
        for package, rooms in zip(packages, (ROOMS, ("family", "bench")), strict=True)
        for room in rooms
        for path in sorted((package / room).rglob("*.py"))
        if not (room == "bench" and path.name in SUMMARIES)
    ]
    return text_digest(torch.__version__, *(path.read_text(encoding="utf-8") for path in files))
