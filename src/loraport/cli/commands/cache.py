"""`cache list`, `cache verify` and `cache clear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import typer

from loraport.cli.options import MACHINE, CacheDir, MessageOptions, cache_folder
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand, GroupedCommands

if TYPE_CHECKING:
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

app = typer.Typer(
    cls=GroupedCommands, help="List, verify or clear the cache of singular bases and samples.", no_args_is_help=True
)


@dataclass(frozen=True)
class CacheOptions:
    """Where the cache is."""

    heading: ClassVar[str] = MACHINE
    cache: CacheDir = None


@app.command("list", cls=GroupedCommand, epilog="Example: loraport cache list")
@with_options
def cache_list(cache: CacheOptions, messages: MessageOptions) -> None:
    """List the bases and samples in the cache, and their size; with -v each of them."""
    from loraport import console
    from loraport.files.disk.sizes import size_words

    store, samples = _stores(cache.cache)
    entries, sampled = store.list(), samples.list()
    rows = [("basis", file) for file in entries] + [("samples", file) for file in sampled]
    if rows and messages.verbose and not messages.json:
        console.say_table([["kind", "key", "size"], *([kind, one.key, size_words(one.bytes)] for kind, one in rows)])
    size = store.total_bytes() + samples.total_bytes()
    counted = {"folder": str(store.folder), "bases": len(entries), "samples": len(sampled)}
    listed = [{"key": entry.key, "bytes": entry.bytes} for entry in entries]
    kept = {"folder": counted["folder"], "entries": listed, "samples": len(sampled), "bytes": size}
    console.print_facts(kept if messages.json else {**counted, "size": size_words(size)}, json=messages.json)


@app.command("verify", cls=GroupedCommand, epilog="Example: loraport cache verify")
@with_options
def cache_verify(cache: CacheOptions, messages: MessageOptions) -> None:
    """Check bases against their checksums, and samples for being whole; damaged ones are made again when needed."""
    from loraport import console

    store, samples = _stores(cache.cache)
    with messages.terminal() as terminal:
        broken = [{"path": str(entry.path), "reason": why} for entry, why in store.verify(progress=terminal)]
    broken += [{"path": str(path), "reason": why} for path, why in samples.verify()]
    checked = len(store.list()) + len(samples.list())
    console.print_facts({"folder": str(store.folder), "checked": checked, "broken": broken}, json=messages.json)


@app.command("clear", cls=GroupedCommand, epilog="Example: loraport cache clear")
@with_options
def cache_clear(cache: CacheOptions, messages: MessageOptions) -> None:
    """Remove all bases and samples; they are made again when needed."""
    from loraport import console

    (store, samples), terminal = _stores(cache.cache), messages.terminal()
    for name in (*(file.key for file in store.list()), *(f"samples {file.key}" for file in samples.list())):
        terminal.detail(f"{name}: removed")
    (files, size), (more, sampled) = store.clear(), samples.clear()
    console.print_facts(
        {"folder": str(store.folder), "removed": files + more, "bytes": size + sampled}, json=messages.json
    )


def _stores(folder: str | None) -> tuple[BasisCache, SampleStore]:
    """Return the caches of bases and of samples, in one folder."""
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

    store = BasisCache(cache_folder(folder))
    return store, SampleStore(store.folder)
