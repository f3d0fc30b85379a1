"""Write the page of one transfer, or of several: what was done to which layer, and what should not be overlooked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from loraport._version import __version__
from loraport.files.names.blocks import layer_depth
from loraport.reports.rendering import in_words, layer_table, percent, render
from loraport.reports.written_file import loading_rows, words_and_hashes, written_facts
from loraport.transfers.results import BatchResult, LayerResult, TransferResult

MOSTLY_IDLE = 0.9
"""Share of entries left alone above which a page says that CASA does little in a layer."""
NO_FIGURES = "the page is without figures: matplotlib is not installed; pip install 'loraport[report]'"


def write_transfer_page(results: TransferResult | BatchResult, path: Path | str) -> tuple[str, ...]:
    """Write the page of a finished transfer, or of several, side by side and then each by itself.

    Returns what the page lacks, in sentences. Raises OutputError where it cannot be written.
    """
    runs = results.runs if isinstance(results, BatchResult) else (results,)
    refused = results.not_written if isinstance(results, BatchResult) else ()
    several = len(runs) + len(refused) > 1
    render(
        "transfer.html.jinja",
        Path(path),
        name=f"{len(runs)} transfers" if several else Path(runs[0].output).name,
        comparison=[_compared(run) for run in runs] if several else [],
        not_written=[(Path(one.output).name, one.reason) for one in refused],
        runs=[transfer_section(run) for run in runs],
        lacking="" if _can_draw() else f"{NO_FIGURES[0].upper()}{NO_FIGURES[1:]}.",
    )
    return lacks()


def lacks() -> tuple[str, ...]:
    """Return what a page about transfers is without here, in sentences."""
    return () if _can_draw() else (NO_FIGURES,)


def _can_draw() -> bool:
    return find_spec("matplotlib") is not None


def transfer_section(result: TransferResult) -> dict[str, Any]:
    """Return what the template shows of one transfer."""
    written = written_facts(result.output)
    return {
        "name": Path(result.output).name,
        "findings": transfer_findings(result),
        "facts": _facts(result) | ({} if written is None else words_and_hashes(written)),
        "loading": [] if written is None else loading_rows(written),
        "warnings": result.warnings,
        "dropped": result.keys.dropped,
        "figures": [
            *_paired(result.pairing),
            *_figures([layer.as_json() for layer in result.layers if layer.status == "transferred"]),
        ],
        **layer_table([layer.as_json() for layer in result.layers]),
    }


def _compared(result: TransferResult) -> list[str]:
    """Return one transfer's row in the comparison: medians over its layers."""
    done = [layer for layer in result.layers if layer.status == "transferred"]
    size = _median([layer.update / layer.lora if layer.update is not None and layer.lora else None for layer in done])
    shares = (size, _median([layer.cosine for layer in done]), result.kept_energy, result.kept_correction)
    ranks = sorted({layer.rank_out for layer in done if layer.rank_out is not None})
    cells = [Path(result.output).name, f"{len(done)} of {len(result.layers)}"]
    cells.append("full" if not ranks else "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))))
    cells += ["–" if share is None else percent(share, 1) for share in shares]
    return [*cells, f"{result.seconds['total']:.1f}"]


def _paired(pairing: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Return the picture of the similarities, where layers were paired by them."""
    if pairing is None or not _can_draw():
        return []
    from loraport.reports import plots_pairing
    from loraport.reports.figures import address

    reading = (
        "Strong colour: the leading singular directions of a source layer (down) and of a target layer (across) agree. "
        f"Rings are the pairs, with a similarity of {pairing['least']:g} or more; a column without a ring got nothing."
    )
    return [("Which layers are alike", address(plots_pairing.similarities(pairing)), reading)]


def _figures(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (title, address, how to read it) of each figure; none where matplotlib is not installed."""
    if not _can_draw():
        return []
    from loraport.reports import plots
    from loraport.reports.figures import address

    rows = [{**layer, "depth": layer_depth(layer["name"])} for layer in layers]
    figures = []
    if any(row["lora"] and row["update"] for row in rows):
        figure = plots.norms(rows, {"update": "as written"})
        reading = "Each point is a layer: the LoRA's size before and after. Below the dashed line it shrinks."
        figures.append(("Size before and after", address(figure), reading))
    shares = {"drift": "drift", "lora": "LoRA", "update": "result"}
    if any(row["drift"] is not None for row in rows):
        figure = plots.shares_by_depth(rows, shares, "size / ‖W‖")
        reading = "How far distillation and LoRA move each layer, and how far the result moves the target."
        figures.append(("By depth", address(figure), reading))
    kept = {"kept_energy": "energy", "kept_correction": "correction", "largest_cluster": "largest cluster / k"}
    if any(row["kept_correction"] is not None for row in rows):
        figure = plots.shares_by_depth(rows, kept, "share")
        reading = "What the rank of the file keeps of the update and of the correction, and how large clusters grow."
        figures.append(("What was kept", address(figure), reading))
    return figures


def transfer_findings(result: TransferResult) -> list[str]:
    """Say what the numbers mean, in sentences."""
    done = [layer for layer in result.layers if layer.status == "transferred"]
    sentences = [f"{len(done)} of {len(result.layers)} layers were transferred by {result.method}."]
    drift, lora, update = (_median([getattr(layer, name) for layer in done]) for name in ("drift", "lora", "update"))
    if drift is not None and lora is not None and update is not None:
        sentences.append(
            f"In the median layer, distillation moved the weight by {percent(drift, 1)} of its norm; the LoRA moves it "
            f"by {percent(lora, 1)}, the result by {percent(update, 1)}."
        )
    if result.kept_correction is not None and result.kept_energy is not None:
        sentences.append(
            f"The written rank keeps {percent(result.kept_energy, 1)} of the update's energy, but "
            f"{percent(result.kept_correction, 1)} of what the method changed; a higher --rank, or --as diff, keeps "
            "more."
        )
    if any(layer.correction for layer in done):
        sentences.append(
            "The result also removes a part of the target's drift: a strength other than 1 scales that too, and a zero "
            "LoRA would not have given a zero result."
        )
    rounded = sum(layer.status == "copied" and layer.floor is not None for layer in result.layers)
    if rounded:
        sentences.append(
            f"In {rounded} layers the drift is within the rounding error of the files; there the LoRA was copied."
        )
    advice = [] if result.advice is None else [f"Advice for this pair, from its weights: {result.advice.line()}."]
    return [*sentences, *_decisions(done), *advice]


def _decisions(done: Sequence[LayerResult]) -> list[str]:
    """Say what CASA did with the routing entries, from the layers' own shares; nothing for other methods."""
    restored, preserved = (_median([getattr(layer, name) for layer in done]) for name in ("restored", "preserved"))
    if restored is None or preserved is None:
        return []
    sentences = [
        f"In the median layer the drift is removed from {percent(restored)} of the routing entries, and "
        f"{percent(preserved)} are left as the distillation made them; in the rest only the stronger update stays."
    ]
    idle = sum(layer.preserved is not None and layer.preserved > MOSTLY_IDLE for layer in done)
    if idle:
        sentences.append(
            f"In {idle} of {len(done)} layers the method leaves more than nine tenths of the entries alone: it does "
            "little there."
        )
    return sentences


def _facts(result: TransferResult) -> dict[str, str]:
    return {
        **({"LoRA": result.lora, "Source": result.source, "Target": result.target} if result.lora else {}),
        "Output": result.output,
        "Method": result.method,
        "Settings": in_words(result.settings),
        "Keys": str(result.keys).replace(" in: ", " read, "),
        "Took": f"{result.seconds['total']:.1f} s on {result.device}, at most "
        f"{result.peak_rss_bytes / 1e9:.2f} GB of memory",
        "Made by": f"loraport {__version__}, with PyTorch {torch.__version__}",
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
