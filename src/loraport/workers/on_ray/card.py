"""One card of a cluster: opens the run's models, keeps the layers that it is asked for, makes parts of them.

Nothing here knows Ray: an actor is this class, and any of its calls can be made again, on another card, too.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport.compute import weights_device
from loraport.digests import text_digest
from loraport.errors import InputError, LoraportError, UnreadableError
from loraport.estimates.card_memory import room_on_card
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.ownership import HOST
from loraport.files.disk.user_paths import expand_home
from loraport.objects.open import is_url, open_objects
from loraport.transfers.layer_source import LayerFacts
from loraport.workers.gather import PartMissingError, gather_job
from loraport.workers.machine import Machine
from loraport.workers.models import OpenModels
from loraport.workers.parts import Part, run_part
from loraport.workers.plan import RunPlan
from loraport.workers.records import JobEnd, Records

TRIES = 3


@dataclass(frozen=True)
class CardFacts:
    """What a card is."""

    machine: Machine
    node: str
    host: str
    resident_bytes: int
    missing: tuple[str, ...]
    """LoRAs that are not on its machine."""
    process: int = 0


@dataclass(frozen=True)
class MadePart:
    """A part, or why there is none."""

    job: int
    name: str = ""
    content: bytes | None = None
    """None where the card has written it to the store by itself."""
    size: int = 0
    seconds: float = 0.0
    facts: LayerFacts | None = None
    reason: str = ""
    tries: int = 1


@dataclass(frozen=True)
class CardOrders:
    """What a card has to know."""

    plan: str
    where: str
    url: str | None
    """The store, where every machine can reach it; None: parts go back to whoever asks."""
    device: str = "auto"
    cache: str | None = None
    resident_bytes: int | None = None
    """None: by the card's memory."""


class Card:
    """Makes parts on one card, one call after the other."""

    def __init__(self, orders: CardOrders, fetch: Callable[[Any], Mapping[str, bytes]], node: str = "") -> None:
        """`fetch`: gets the files of a LoRA, by their names, from a reference to them."""
        self.plan = plan = RunPlan.read(orders.plan, orders.where)
        self.fetch, self.store = fetch, None if orders.url is None else open_objects(orders.url)
        self.folder = Path(tempfile.gettempdir()) / f"loraport-{os.getuid() if hasattr(os, 'getuid') else 0}" / plan.id
        places = {job.config.lora for job in plan.jobs}
        self.missing = tuple(sorted(place for place in places if not _is_reachable(place)))
        self.copies = {place: str(self.folder / text_digest(place)[:16] / Path(place).name) for place in self.missing}
        self.models = OpenModels(
            _with_copies(plan, self.copies), device=orders.device, cache=orders.cache,
            resident_bytes=_memory(orders.device) if orders.resident_bytes is None else orders.resident_bytes,
        )  # fmt: skip
        machine = Machine.here(orders.device, plan.machine.threads)
        machine.check(plan.machine, orders.where)
        self.facts_of_card = CardFacts(machine, node, HOST, self.models.resident_bytes, self.missing, os.getpid())

    def facts(self) -> CardFacts:
        """Return what it is. Whoever asks waits until it stands ready."""
        return self.facts_of_card

    def make(self, wave: int, layer: str, jobs: Sequence[int], loras: Mapping[str, Any]) -> list[MadePart]:
        """Make the parts of one layer for jobs of a wave; `loras`: references to those that may not be here.

        Raises UnreadableError where the models cannot be read here, OutputError for the store.
        """
        for job in jobs:
            place = self.place_of(job)
            if place in self.copies and place in loras:
                self._bring(Path(self.copies[place]), loras[place])
        self.models.set_threads()
        opened = self.models.wave(wave)
        made = []
        for job in jobs:
            if job in opened.jobs:
                made.append(self._make(job, layer))
            else:
                made.append(MadePart(job, reason=opened.refused.get(job, f"{self.place_of(job)} cannot be opened")))
        return made

    def gather(self, job: int, loras: Mapping[str, Any]) -> JobEnd | None:
        """Write a job's output to the store; None where parts are missing.

        Raises UnwritableJobError where the job is at fault, OutputError and UnreadableError where the store is.
        """
        place = self.place_of(job)
        if self.store is None:
            raise InputError("this card does not reach the store")
        if place in self.copies and place in loras:
            self._bring(Path(self.copies[place]), loras[place])
        try:
            end = gather_job(self.store, self.models, self.models.job(job))
        except PartMissingError:
            return None
        planned = self.plan.jobs[job]
        if end.job != planned.id:  # made of a copy: the record is to name what was asked for
            end = replace(end, job=planned.id, row=replace(end.row, lora=planned.config.lora))
            Records(self.store).put_end(planned, end)
        return end

    def place_of(self, job: int) -> str:
        """Return where a job's LoRA lies, as the plan has it."""
        return self.plan.jobs[job].config.lora

    def _make(self, job: int, layer: str) -> MadePart:
        start, opened = time.perf_counter(), self.models.job(job)
        name = opened.parts[layer]
        try:
            facts = self.models.layer(opened, layer).facts
        except UnreadableError:  # the models, which other machines may reach
            raise
        except InputError as error:
            return MadePart(job, name, reason=str(error))
        for number in range(1, TRIES + 1):
            try:
                content = run_part(self.models.plan, Part(job, layer), self.models)
                break
            except Exception as error:  # of the LoRA, or a library's, which may pass
                lasting = isinstance(error, InputError) and not isinstance(error, UnreadableError)
                if lasting or number == TRIES:
                    return MadePart(job, name, reason=_words(layer, error), tries=number)
                self.models.make_room(error)
        if self.store is not None:
            self.store.write(name, content)
        seconds = time.perf_counter() - start
        return MadePart(job, name, content if self.store is None else None, len(content), seconds, facts)

    def _bring(self, copy: Path, reference: Any) -> None:
        """Put a LoRA on this machine's disk, once for all its cards."""
        if copy.exists():
            return
        files = self.fetch(reference)
        if set(files) == {""}:
            write_whole(copy, files[""], private=True)
            return
        for name, content in sorted(files.items(), key=lambda one: one[0].endswith(".safetensors")):
            write_whole(copy / name, content, private=True)


def files_of_lora(place: str) -> dict[str, bytes]:
    """Return the files of a LoRA on this machine: of a folder by their names in it, of a file under an empty name.

    Raises OSError.
    """
    path = expand_home(place)
    if not path.is_dir():
        return {"": path.read_bytes()}
    return {one.name: one.read_bytes() for one in sorted(path.iterdir()) if one.is_file()}


def _is_reachable(place: str) -> bool:
    """Return whether a machine gets a LoRA by itself: it lies there, or its place is a name that leads anywhere."""
    from loraport.files.models.hub import looks_like_hub_id

    return expand_home(place).exists() or is_url(place) or looks_like_hub_id(place)


def _with_copies(plan: RunPlan, copies: Mapping[str, str]) -> RunPlan:
    """Return the plan with LoRAs at the places of their copies."""
    passes = tuple(
        tuple(
            replace(job, config=replace(job.config, lora=copies.get(job.config.lora, job.config.lora))) for job in one
        )
        for one in plan.passes
    )
    return replace(plan, passes=passes)


def _memory(device: str) -> int:
    """Return how many bytes layers may take: by what is free on the card; of main memory a core's share of half."""
    found = weights_device(device)
    if found.type == "cuda":
        return room_on_card(found)
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // (os.cpu_count() or 1)


def _words(layer: str, error: Exception) -> str:
    if isinstance(error, LoraportError):
        return str(error)
    return f"layer {layer}: {type(error).__name__}: {error}".splitlines()[0][:300]
