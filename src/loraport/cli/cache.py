"""`cache list`, `cache verify`, `cache clear`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from loraport.cli.options import (
    CacheDir,
    Json,
    Quiet,
    Verbose,
    cache_folder,
)

if TYPE_CHECKING:
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

app = typer.Typer(
    help="The store of singular bases and samples: what is in it, is it sound, throw it away.", no_args_is_help=True
)


@app.command("list", epilog="Example: loraport cache list")
def cache_list(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The bases and samples that are kept, and their size; with -v each of them."""
    from loraport import console

    (store, samples), terminal = _stores(cache), console.Terminal(quiet=quiet, verbose=verbose)
    entries, sampled = store.list(), samples.list()
    for start, files in (("", entries), ("samples ", sampled)):
        for file in files:
            terminal.detail(f"{start}{file.key}: {file.bytes} bytes")
    size = store.total_bytes() + samples.total_bytes()
    counted = {"folder": str(store.folder), "bases": len(entries), "samples": len(sampled)}
    rows = [{"key": entry.key, "bytes": entry.bytes} for entry in entries]
    kept = {"folder": counted["folder"], "entries": rows, "samples": len(sampled), "bytes": size}
    console.print_facts(kept if json else {**counted, "size": f"{size / 1e9:.2f} GB"}, json=json)


@app.command("verify", epilog="Example: loraport cache verify")
def cache_verify(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check bases against their checksums, and samples for being whole; what is damaged is made anew when needed."""
    from loraport import console

    store, samples = _stores(cache)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        broken = [{"path": str(entry.path), "reason": why} for entry, why in store.verify(progress=terminal)]
    broken += [{"path": str(path), "reason": why} for path, why in samples.verify()]
    checked = len(store.list()) + len(samples.list())
    console.print_facts({"folder": str(store.folder), "checked": checked, "broken": broken}, json=json)


@app.command("clear", epilog="Example: loraport cache clear")
def cache_clear(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Remove all bases and samples; nothing but time is lost."""
    from loraport import console

    (store, samples), terminal = _stores(cache), console.Terminal(quiet=quiet, verbose=verbose)
    for name in (*(file.key for file in store.list()), *(f"samples {file.key}" for file in samples.list())):
        terminal.detail(f"{name}: removed")
    (files, size), (more, sampled) = store.clear(), samples.clear()
    console.print_facts({"folder": str(store.folder), "removed": files + more, "bytes": size + sampled}, json=json)


def _stores(folder: str | None) -> tuple[BasisCache, SampleStore]:
    """Of bases and of samples, in one folder."""
    from loraport.sampling.samples import SampleStore
    from loraport.store.bases import BasisCache

    store = BasisCache(cache_folder(folder, False))
    return store, SampleStore(store.folder)
