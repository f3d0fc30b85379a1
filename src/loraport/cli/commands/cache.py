"""`cache list`, `cache verify` and `cache clear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import typer

from loraport.cli.options import MACHINE, CacheDir, MessageOptions, cache_folder
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand, GroupedCommands

if TYPE_CHECKING:
    from loraport.evaluation.readings import ReadingStore
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

app = typer.Typer(
    cls=GroupedCommands,
    help="List, verify or clear the cache: bases, samples, readings of clips.",
    epilog="Example: loraport cache list",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class CacheOptions:
    """Where the cache is."""

    heading: ClassVar[str] = MACHINE
    cache: CacheDir = None


@app.command("list", cls=GroupedCommand, epilog="Example: loraport cache list")
@with_options
def cache_list(cache: CacheOptions, messages: MessageOptions) -> None:
    """List what is in the cache (bases, samples, readings of clips) and its size; with -v each of them."""
    from loraport import console
    from loraport.files.disk.sizes import size_words

    store, samples, readings = _stores(cache.cache)
    entries, sampled, read = store.list(), samples.list(), readings.list()
    kinds = {"basis": entries, "samples": sampled, "readings": read}
    rows = [(kind, file) for kind, files in kinds.items() for file in files]
    if rows and messages.verbose and not messages.json:
        console.say_table([["kind", "key", "size"], *([kind, one.key, size_words(one.bytes)] for kind, one in rows)])
    size = store.total_bytes() + samples.total_bytes() + readings.total_bytes()
    counted = {"folder": str(store.folder), "bases": len(entries), "samples": len(sampled), "readings": len(read)}
    listed = [{"key": entry.key, "bytes": entry.bytes} for entry in entries]
    kept = {
        "folder": counted["folder"],
        "entries": listed,
        "samples": len(sampled),
        "readings": len(read),
        "bytes": size,
    }
    console.print_facts(kept if messages.json else {**counted, "size": size_words(size)}, json=messages.json)


@app.command("verify", cls=GroupedCommand, epilog="Example: loraport cache verify")
@with_options
def cache_verify(cache: CacheOptions, messages: MessageOptions) -> None:
    """Check bases against their checksums, and all else for being whole; what is damaged is made again when needed."""
    from loraport import console

    store, *others = _stores(cache.cache)
    with messages.terminal() as terminal:
        broken = [{"path": str(entry.path), "reason": why} for entry, why in store.verify(progress=terminal)]
    broken += [{"path": str(path), "reason": why} for other in others for path, why in other.verify()]
    checked = len(store.list()) + sum(len(other.list()) for other in others)
    console.print_facts({"folder": str(store.folder), "checked": checked, "broken": broken}, json=messages.json)


@app.command("clear", cls=GroupedCommand, epilog="Example: loraport cache clear")
@with_options
def cache_clear(cache: CacheOptions, messages: MessageOptions) -> None:
    """Remove all bases, samples and readings; they are made again when needed."""
    from loraport import console

    (store, samples, readings), terminal = _stores(cache.cache), messages.terminal()
    for kind, files in (("", store.list()), ("samples ", samples.list()), ("readings ", readings.list())):
        for file in files:
            terminal.detail(f"{kind}{file.key}: removed")
    removed = [store.clear(), samples.clear(), readings.clear()]
    count, size = (sum(one[place] for one in removed) for place in (0, 1))
    console.print_facts({"folder": str(store.folder), "removed": count, "bytes": size}, json=messages.json)


def _stores(folder: str | None) -> tuple[BasisCache, SampleStore, ReadingStore]:
    """Return the caches of bases, of samples and of readings, in one folder."""
    from loraport.evaluation.readings import ReadingStore
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

    store = BasisCache(cache_folder(folder))
    return store, SampleStore(store.folder), ReadingStore(store.folder)
