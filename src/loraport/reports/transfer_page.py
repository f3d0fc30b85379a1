"""One transfer as a page: what was done to which layer, and what a reader should not overlook."""

from __future__ import annotations

import json
from pathlib import Path

from loraport.reports.rendering import layer_table, render
from loraport.runs.results import TransferResult


def write_transfer_page(result: TransferResult, path: Path | str) -> None:
    """Write the page of a finished transfer. Raises OutputError where it cannot be written."""
    render(
        "transfer.html.jinja",
        Path(path),
        name=Path(result.output).name,
        findings=findings(result),
        facts=_facts(result),
        warnings=result.warnings,
        dropped=result.keys["dropped"],
        **layer_table([layer.as_json() for layer in result.layers]),
    )


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
    giants = sum((layer.largest_cluster or 0) > 0.5 for layer in done)
    if giants:
        sentences.append(
            f"In {giants} of {len(done)} layers one cluster holds more than half of the leading directions; there all "
            "counts as dominant and the method does little."
        )
    return sentences


def _facts(result: TransferResult) -> dict[str, str]:
    keys = result.keys
    return {
        "Output": result.output,
        "Method": result.method,
        "Settings": json.dumps(dict(result.settings)),
        "Keys": f"{keys['in']} read, {keys['transferred']} transferred, {keys['copied']} copied, "
        f"{len(keys['dropped'])} dropped",
        "Took": f"{result.seconds['total']:.1f} s, at most {result.peak_rss_bytes / 1e9:.2f} GB of memory",
    }


def _median(values: list[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
