"""One transfer as a page: what was done to which layer, and what a reader should not overlook."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loraport.files.names.blocks import layer_depth
from loraport.reports.rendering import in_words, layer_table, render
from loraport.transfers.results import BatchResult, LayerResult, TransferResult

LITTLE = 0.9
"""Share of entries left alone above which a page says that CASA does little in a layer."""


def write_transfer_page(results: TransferResult | BatchResult, path: Path | str) -> None:
    """Write the page of a finished transfer, or of several, side by side and then each by itself.

    Raises OutputError where it cannot be written.
    """
    runs = results.runs if isinstance(results, BatchResult) else (results,)
    refused = results.not_written if isinstance(results, BatchResult) else ()
    several = len(runs) + len(refused) > 1
    render(
        "transfer.html.jinja",
        Path(path),
        name=f"{len(runs)} transfers" if several else Path(runs[0].output).name,
        comparison=[_compared(run) for run in runs] if several else [],
        not_written=[(Path(output).name, reason) for output, reason in refused],
        runs=[_section(run) for run in runs],
    )


def _section(result: TransferResult) -> dict[str, Any]:
    """What the template shows of one transfer."""
    return {
        "name": Path(result.output).name,
        "findings": findings(result),
        "facts": _facts(result),
        "warnings": result.warnings,
        "dropped": result.keys.dropped,
        "figures": [
            *_paired(result.pairing),
            *_figures([layer.as_json() for layer in result.layers if layer.status == "transferred"]),
        ],
        **layer_table([layer.as_json() for layer in result.layers]),
    }


def _compared(result: TransferResult) -> list[str]:
    """One transfer's row in the comparison: medians over its layers."""
    done = [layer for layer in result.layers if layer.status == "transferred"]
    size = _median([layer.update / layer.lora if layer.update is not None and layer.lora else None for layer in done])
    shares = (size, _median([layer.cosine for layer in done]), result.kept_energy, result.kept_correction)
    ranks = sorted({layer.rank_out for layer in done if layer.rank_out is not None})
    cells = [Path(result.output).name, f"{len(done)} of {len(result.layers)}"]
    cells.append("full" if not ranks else "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))))
    cells += ["–" if share is None else f"{share:.1%}" for share in shares]
    return [*cells, f"{result.seconds['total']:.1f}"]


def _paired(pairing: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """The picture of the similarities, where layers were paired by them."""
    if pairing is None or find_spec("matplotlib") is None:
        return []
    from loraport.reports import plots, plots_pairing

    reading = (
        "Dark: the leading singular directions of a source layer (down) and a target layer (across) are the same. "
        f"Rings are the pairs, with a similarity of {pairing['least']:g} or more; a column without a ring got nothing."
    )
    return [("Which layer takes after which", plots.address(plots_pairing.similarities(pairing)), reading)]


def _figures(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(title, address, how to read it) of what the transfer itself knows; none where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return []
    from loraport.reports import plots

    rows = [{**layer, "depth": layer_depth(layer["name"])} for layer in layers]
    found = []
    if any(row["lora"] and row["update"] for row in rows):
        figure = plots.norms(rows, {"update": "as written"})
        reading = "Each point is a layer: the LoRA's size before and after. Below the dashed line it shrinks."
        found.append(("Size before and after", plots.address(figure), reading))
    shares = {"drift": "drift", "lora": "LoRA", "update": "result"}
    if any(row["drift"] is not None for row in rows):
        figure = plots.shares_by_depth(rows, shares, "size / ‖W‖")
        reading = "How far distillation and LoRA move each layer, and how far the result moves the target."
        found.append(("By depth", plots.address(figure), reading))
    kept = {"kept_energy": "energy", "kept_correction": "correction", "largest_cluster": "largest cluster / k"}
    if any(row["kept_correction"] is not None for row in rows):
        figure = plots.shares_by_depth(rows, kept, "share")
        reading = "What the rank of the file keeps of the update and of the correction, and how large clusters grow."
        found.append(("What was kept", plots.address(figure), reading))
    return found


def findings(result: TransferResult) -> list[str]:
    """What the numbers say, in sentences."""
    done = [layer for layer in result.layers if layer.status == "transferred"]
    sentences = [f"{len(done)} of {len(result.layers)} layers were transferred by {result.method}."]
    drift, lora, update = (_median([getattr(layer, name) for layer in done]) for name in ("drift", "lora", "update"))
    if drift is not None and lora is not None and update is not None:
        sentences.append(
            f"In the middle layer, distillation moved the weight by {drift:.1%} of its norm; the LoRA moves it by "
            f"{lora:.1%}, the result by {update:.1%}."
        )
    if result.kept_correction is not None and result.kept_energy is not None:
        sentences.append(
            f"The written rank keeps {result.kept_energy:.1%} of the update's energy, "
            f"but {result.kept_correction:.1%} of what the method changed; a higher --rank, or --as diff, keeps more."
        )
    if any(layer.correction for layer in done):
        sentences.append(
            "The result also takes back a part of the target's drift, so a strength slider scales both, and a zero "
            "LoRA would not have given a zero result."
        )
    rounded = sum(layer.status == "copied" and layer.floor is not None for layer in result.layers)
    if rounded:
        sentences.append(
            f"In {rounded} layers the drift cannot be told from the rounding of the files; there the LoRA was copied."
        )
    return [*sentences, *_decisions(done)]


def _decisions(done: Sequence[LayerResult]) -> list[str]:
    """What CASA did with the routing entries, from the layers' own shares; nothing for other methods."""
    restored, preserved = (_median([getattr(layer, name) for layer in done]) for name in ("restored", "preserved"))
    if restored is None or preserved is None:
        return []
    sentences = [
        f"In the middle layer the drift is taken back from {restored:.0%} of the routing entries, and {preserved:.0%} "
        "are left as the distillation made them; in the rest only the stronger update stays."
    ]
    idle = sum(layer.preserved is not None and layer.preserved > LITTLE for layer in done)
    if idle:
        sentences.append(
            f"In {idle} of {len(done)} layers more than nine tenths of the entries are left alone: there the method "
            "does little."
        )
    return sentences


def _facts(result: TransferResult) -> dict[str, str]:
    return {
        "Output": result.output,
        "Method": result.method,
        "Settings": in_words(result.settings),
        "Keys": str(result.keys).replace(" in: ", " read, "),
        "Took": f"{result.seconds['total']:.1f} s, at most {result.peak_rss_bytes / 1e9:.2f} GB of memory",
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
