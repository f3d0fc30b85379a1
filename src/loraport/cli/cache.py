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
    from loraport.weights.cache import BasisCache

app = typer.Typer(help="The store of singular bases: what is in it, is it sound, throw it away.", no_args_is_help=True)


@app.command("list", epilog="Example: loraport cache list")
def cache_list(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The bases that are kept, and their size; with -v each of them."""
    from loraport import console

    store, terminal = _store(cache), console.Terminal(quiet=quiet, verbose=verbose)
    entries = store.list()
    for entry in entries:
        terminal.detail(f"{entry.key}: {entry.bytes} bytes")
    size = store.total_bytes()
    shown = {"folder": str(store.folder), "bases": len(entries), "size": f"{size / 1e9:.2f} GB"}
    rows = [{"key": entry.key, "bytes": entry.bytes} for entry in entries]
    console.print_facts({"folder": str(store.folder), "entries": rows, "bytes": size} if json else shown, json=json)


@app.command("verify", epilog="Example: loraport cache verify")
def cache_verify(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check every basis against its checksum; damaged ones are recomputed by the next transfer that needs them."""
    from loraport import console

    store = _store(cache)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        broken = [{"path": str(entry.path), "reason": why} for entry, why in store.verify(watch=terminal.share)]
    console.print_facts({"folder": str(store.folder), "checked": len(store.list()), "broken": broken}, json=json)


@app.command("clear", epilog="Example: loraport cache clear")
def cache_clear(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Remove every basis; nothing but time is lost."""
    from loraport import console

    store, terminal = _store(cache), console.Terminal(quiet=quiet, verbose=verbose)
    for entry in store.list():
        terminal.detail(f"{entry.key}: removed")
    files, size = store.clear()
    console.print_facts({"folder": str(store.folder), "removed": files, "bytes": size}, json=json)


def _store(folder: str | None) -> BasisCache:
    from loraport.weights.cache import BasisCache

    return BasisCache(cache_folder(folder, False))
