"""Many cards and many LoRAs, played through on paper: time, idle share, bytes and price, from measured layer times.

    python -m benchmarks.scale              (the tables of docs/how-to/scale.md, in seconds)
    python -m benchmarks.scale_check        (beside real runs on this machine, with one worker and with two)

The rules are those of a run: LoRAs go in waves of up to 64; each card owns layers, given out longest first by what they
cost; a card reads what comes next while it works, and writes parts behind its work; a layer that stays in its memory is
read and decomposed once, another once a wave; a LoRA is gathered when all its parts are there. Seconds of a layer are
`loraport.estimates.layer_cost`'s: measured on one H100, and on one thread of a processor. What was not measured is a
number of a `Site`: bandwidth of the store, price of an hour. From the sixth wave on, waves take what those before took.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.synthetic import RANK, config_of

from loraport.estimates.layer_cost import CARD, Device, LayerSeconds, layer_seconds
from loraport.methods.recipes import find_recipe

WAVE, PLAYED = 64, 6
"""LoRAs of a wave; waves that are played, before the others are taken for alike."""
CARDS, LORAS = (1, 8, 64), (10, 1_000, 100_000)
AIM = 5.0
"""Seconds that a further LoRA of 14B is meant to take on a card (`benchmarks.card`)."""
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "scale.md"
Shape = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """Machines with cards, and the store that they share."""

    memory: float = 64e9
    """Bytes of a card's memory that layers may stay in: what is left of 80 GB beside the work."""
    a_machine: int = 8
    """Cards in one machine, which share what follows."""
    read: float = 2e9
    """Bytes a second that a machine reads from the store, models and parts."""
    write: float = 1e9
    """Bytes a second that it writes there."""
    request: float = 0.03
    """Seconds until the store has taken one object; this many are under way at once:"""
    at_once: int = 16
    hour: float = 3.0
    """Price of an hour of one card; idle ones are paid, too."""
    start: float = 60.0
    """Seconds until a card's program stands ready: image, Python, PyTorch, headers."""
    spread: float = 0.1
    """Share by which layers take more or less than measured, drawn with a fixed seed."""


@dataclass(frozen=True)
class Work:
    """One layer for the LoRAs of one wave."""

    read: float
    """Bytes of weights."""
    busy: float
    """Seconds of the card."""
    written: float
    """Bytes of parts."""
    parts: int


@dataclass(frozen=True)
class Outcome:
    """What a run took."""

    cards: int
    loras: int
    seconds: float
    idle: float
    """Share of all cards' time in which they did not compute."""
    busy: float
    """Seconds of all cards in which they did."""
    read: float
    written: float
    limit: str
    """What most of the time went into: the start, reading, the card, the store, or uneven shares of layers."""

    def price(self, hour: float) -> float:
        return self.cards * self.seconds / 3600 * hour


def shapes_of(size: str) -> list[Shape]:
    """(out, in) of all layers of a model."""
    config = config_of(size)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return ([(width, width)] * 8 + [(config["ffn_dim"], width), (width, config["ffn_dim"])]) * config["num_layers"]


def measured(shapes: Sequence[Shape], device: Device = CARD, faster: float = 1.0) -> list[LayerSeconds]:
    """What each layer takes by CASA; `faster`: so many times as fast for each LoRA as measured."""
    recipe = find_recipe("casa")
    found = {shape: layer_seconds(shape, recipe, device) for shape in set(shapes)}
    return [replace(found[shape], own=found[shape].own / faster) for shape in shapes]


def owners(costs: Sequence[float], count: int) -> list[list[int]]:
    """The layers of each card: longest first, each to the card that has the least so far."""
    cards: list[tuple[float, int]] = [(0.0, number) for number in range(count)]
    own: list[list[int]] = [[] for _ in range(count)]
    for layer in sorted(range(len(costs)), key=lambda layer: (-costs[layer], layer)):
        load, number = heapq.heappop(cards)
        own[number].append(layer)
        heapq.heappush(cards, (load + costs[layer], number))
    return own


def works(
    shapes: Sequence[Shape], layers: Sequence[LayerSeconds], own: Sequence[int], memory: float
) -> Iterator[list[Work]]:
    """Yield what one card does, wave by wave for ever, there and back: what it had last, it needs first."""
    resident: dict[int, float] = {}
    held, known, turn = 0.0, False, 1
    while True:
        wave = []
        for layer in own[::turn]:
            m, n = max(shapes[layer]), min(shapes[layer])
            there = layer in resident
            held -= resident.pop(layer, 0.0)
            resident[layer] = 4.0 * (3 * m * n + 3 * n * n)
            held += resident[layer]
            while len(resident) > 1 and held > memory:
                held -= resident.pop(next(iter(resident)))
            shared = 0.0 if there else layers[layer].shared_again if known else layers[layer].shared
            part = 2.0 * 2 * RANK * (m + n)  # bf16, twice the LoRA's rank
            wave.append(Work(0.0 if there else 6.0 * m * n, shared + WAVE * layers[layer].own, WAVE * part, WAVE))
        yield wave
        known, turn = True, -turn


@dataclass
class Lanes:
    """One card's time: when its reading, its work and its writing are done, and what each took."""

    site: Site
    sharing: int
    draw: random.Random
    read_until: float = 0.0
    worked_until: float = 0.0
    written_until: float = 0.0
    reading: float = 0.0
    card: float = 0.0
    store: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def do(self, work: Work, share: float, own: float) -> None:
        """Do one work; `share` of its LoRAs are there, each of which takes `own` seconds."""
        takes = work.busy - (1 - share) * WAVE * own
        takes *= self.draw.uniform(1 - self.site.spread, 1 + self.site.spread)
        reading = work.read / self.site.read * self.sharing
        by_bytes = share * work.written / self.site.write * self.sharing
        writing = max(by_bytes, share * work.parts * self.site.request / self.site.at_once)
        ready = max(self.read_until + reading, self.worked_until)
        self.read_until = max(self.read_until + reading, self.worked_until)  # one layer is read ahead
        self.worked_until = ready + takes
        self.written_until = max(self.worked_until, self.written_until) + writing
        for lane, amount in (("reading", reading), ("card", takes), ("store", writing)):
            setattr(self, lane, getattr(self, lane) + amount)
        self.read += work.read
        self.written += share * work.written

    def numbers(self) -> dict[str, float]:
        """All amounts so far."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


def one_card(
    shapes: Sequence[Shape], layers: Sequence[LayerSeconds], own: Sequence[int], loras: int, lanes: Lanes
) -> dict[str, float]:
    """Play one card's share through; return its amounts at the end."""
    waves, turns, kept = -(-loras // WAVE), works(shapes, layers, own, lanes.site.memory), {}
    order = list(own)
    for number in range(min(waves, PLAYED)):
        share = min(WAVE, loras - number * WAVE) / WAVE
        for layer, work in zip(order, next(turns), strict=True):
            lanes.do(work, share, layers[layer].own)
        order.reverse()
        if number == PLAYED - 5:
            kept = lanes.numbers()
    found = lanes.numbers()
    if waves > PLAYED:
        rest = (loras - PLAYED * WAVE) / WAVE / 4  # the last four waves that were played, so many times
        found = {name: value + rest * (value - kept[name]) for name, value in found.items()}
    return found


def played(
    shapes: Sequence[Shape], layers: Sequence[LayerSeconds], cards: int, loras: int, site: Site | None = None
) -> Outcome:
    """Play a run through on so many cards."""
    site = Site() if site is None else site
    shares = owners([one.shared + min(loras, WAVE) * one.own for one in layers], cards)
    sharing, machines = min(cards, site.a_machine), -(-cards // site.a_machine)
    ended = [
        one_card(shapes, layers, own, loras, Lanes(site, sharing, random.Random(number)))
        for number, own in enumerate(shares)
    ]
    ends = [max(one["worked_until"], one["written_until"]) for one in ended]
    busy, read, written = (sum(one[name] for one in ended) for name in ("card", "read", "written"))
    # Each LoRA's parts are read again and its file is written, by all machines; of earlier waves beside the work.
    gathering = written / machines * (1 / site.read + 1 / site.write)
    after = gathering * min(1.0, WAVE / loras)
    slowest = ended[ends.index(max(ends))]
    seconds = site.start + max(max(ends) + after, slowest["store"] + gathering)
    spent = {
        "start": site.start,
        "reading": slowest["reading"],
        "card": slowest["card"],
        "store": slowest["store"] + gathering,
        "uneven shares": max(ends) - sum(ends) / cards,
    }
    idle = 1 - busy / (cards * seconds)
    limit = max(spent, key=lambda name: spent[name])
    return Outcome(cards, loras, seconds, idle, busy, read + written, 2 * written, limit)


def table(size: str, faster: float = 1.0, site: Site | None = None) -> list[str]:
    """The lines of a table in Markdown, one a number of LoRAs and cards."""
    site, shapes = Site() if site is None else site, shapes_of(size)
    layers = measured(shapes, faster=faster)
    lines = ["| LoRAs | cards | time | a LoRA | idle | read | written | price | what limits |"]
    lines.append("|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for loras in LORAS:
        for cards in CARDS:
            one = played(shapes, layers, cards, loras, site)
            lines.append(
                f"| {loras:,} | {cards} | {_time(one.seconds)} | {_time(one.seconds / loras)} | {100 * one.idle:.0f} % "
                f"| {_bytes(one.read)} | {_bytes(one.written)} | {_price(one.price(site.hour))} | {one.limit} |"
            )
    return lines


def tables() -> dict[str, list[str]]:
    """Name -> a table of the page: as measured, and at the speed that is aimed for."""
    own = sum(one.own for one in measured(shapes_of("14b")))
    return {"14b": table("14b"), "14b-aim": table("14b", faster=own / AIM), "1.3b": table("1.3b")}


def with_tables(page: str) -> str:
    """The page with its tables as they are now, each between its two marks."""
    for name, lines in tables().items():
        begin, end = f"<!-- {name}: made by `python -m benchmarks.scale --write` -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = "\n".join((before + begin, "", *lines, "", end)) + rest.partition(end)[2]
    return page


def _price(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2f}"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the page, between its marks")
    if parser.parse_args().write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, lines in tables().items():
        print(f"\n{name}\n")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
