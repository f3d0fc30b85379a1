"""The results of a suite as JSON, as a table of targets in Markdown, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]


def write_results(folder: Path, name: str, result: Row) -> None:
    """NAME.json, NAME.md and NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    result["targets"] = targets(result)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(result))
    plot(folder / f"{name}.png", result)
    print(markdown(result))


def ratios(rounds: Sequence[Row], above: Sequence[str], below: Callable[[Row], float]) -> list[float]:
    """wall(above) / below, in each round that has it."""
    complete = [row for row in rounds if all(name in row for name in above)]
    return [sum(row[name]["wall_s"] for name in above) / below(row) for row in complete]


def wall(name: str) -> Callable[[Row], float]:
    """The wall time of one contender."""
    return lambda row: row[name]["wall_s"]


def targets(result: Row) -> dict[str, Row]:
    """Each measured quantity: the ratios of all rounds, their median, and what was aimed at."""
    rounds, disk = result["rounds"], result["disk"]
    everything = ["published svd", "published cfft", "published transfer"]
    further = [(row["warm, 2 LoRAs"]["wall_s"] - row["warm"]["wall_s"]) / row["warm"]["wall_s"] for row in rounds]
    cores = [row["warm, one thread"]["wall_s"] / row["warm"]["wall_s"] for row in rounds]
    bare = [row["floor, one thread"]["products"]["gemm_s"] / row["floor"]["products"]["gemm_s"] for row in rounds]
    memory = [row[name]["peak_anonymous_bytes"] / 1e9 for row in rounds for name in ("cold", "warm", "no cache")]
    rows = {
        "cold against the published pipeline, times faster": (ratios(rounds, everything, wall("cold")), "≥ 4"),
        "warm against its transfer step, times faster": (ratios(rounds, everything[2:], wall("warm")), "≥ 10"),
        "warm against the floor": (ratios(rounds, ["warm"], lambda row: row["floor"]["products"]["wall_s"]), "≤ 2"),
        "warm against the floor with stored routing": (
            ratios(rounds, ["warm"], lambda row: row["floor"]["stored"]["wall_s"]),
            "–",
        ),
        "without a cache against cold": (ratios(rounds, ["no cache"], wall("cold")), "≤ 1"),
        "a further LoRA, share of a warm run": (further, "≤ 0.3"),
        "two threads against one": (cores, "≥ 1.7"),
        "bare products, two threads against one": (bare, "–"),
        "peak of anonymous memory, GB": ([max(memory)], "≤ 1.5 (1.3B), ≤ 4 (14B)"),
        "cache against the published one by shapes": ([disk["ours"] / disk["published_by_shapes"]], "≤ 0.167"),
    }
    return {
        name: {"values": [round(value, 3) for value in values], "median": round(median(values), 3), "target": target}
        for name, (values, target) in rows.items()
        if values
    }


def markdown(result: Row) -> str:
    """The table of targets, the contenders' medians, and the growth."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None)
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    lines = [f"{where}\n", f"{settings}\n", "| what | target | median | all rounds |", "|---|---|---|---|"]
    for name, row in result["targets"].items():
        values = ", ".join(f"{value:g}" for value in row["values"])
        lines.append(f"| {name} | {row['target']} | {row['median']:g} | {values} |")
    lines += ["", "| run | wall s | CPU s | anonymous GB | resident GB | read GB | written GB |", "|---|" + "---|" * 6]
    for name in dict.fromkeys(name for row in result["rounds"] for name in row if not name.startswith("floor")):
        some = [row[name] for row in result["rounds"] if name in row]
        sizes = ("peak_anonymous_bytes", "peak_rss_bytes", "bytes_read", "bytes_written")
        cells = [f"{median(one[key] for one in some):.1f}" for key in ("wall_s", "cpu_s")]
        cells += [f"{max(one[key] for one in some) / 1e9:.2f}" for key in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "growth" in result:
        lines += ["", *_growth_lines(result["growth"])]
    return "\n".join(lines) + "\n"


def _growth_lines(growth: Row) -> list[str]:
    lines = [
        f"Growth, layers {growth['width']} wide:",
        "",
        "| blocks | cold s | warm s | GB | GB |",
        "|---|---|---|---|---|",
    ]
    for blocks, row in growth["by_blocks"].items():
        cells = [f"{row[name]['wall_s']:.1f}" for name in ("cold", "warm")]
        cells += [f"{row[name]['peak_anonymous_bytes'] / 1e9:.2f}" for name in ("cold", "warm")]
        lines.append(f"| {blocks} | {' | '.join(cells)} |")
    lines += ["", f"| LoRAs ({growth['blocks_of_loras']} blocks) | warm s | GB |", "|---|---|---|"]
    for loras, row in growth["by_loras"].items():
        lines.append(f"| {loras} | {row['wall_s']:.1f} | {row['peak_anonymous_bytes'] / 1e9:.2f} |")
    return lines


def plot(path: Path, result: Row) -> None:
    """Bars of wall times; curves of growth where they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    growth = result.get("growth")
    figure, axes = plt.subplots(1, 3 if growth else 1, figsize=(13 if growth else 6, 3.6), squeeze=False)
    names = list(dict.fromkeys(name for row in result["rounds"] for name in row if not name.startswith("floor")))
    seconds = [median(row[name]["wall_s"] for row in result["rounds"] if name in row) for name in names]
    floors = {
        f"floor, {kind}": median(row["floor"][kind]["wall_s"] for row in result["rounds"])
        for kind in ("products", "stored")
    }
    bars = axes[0][0]
    labels = [*names, *floors]
    bars.barh(
        labels,
        [*seconds, *floors.values()],
        color=["#b44" if "published" in n else "#999" if "floor" in n else "#357" for n in labels],
    )
    bars.set_xscale("log")
    bars.set_xlabel("seconds, wall")
    bars.invert_yaxis()
    if growth:
        for place, (key, label) in enumerate((("by_blocks", "blocks"), ("by_loras", "LoRAs")), 1):
            _curves(axes[0][place], growth[key], label)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axes: Any, rows: Row, label: str) -> None:
    """Seconds on the left, memory on the right."""
    right = axes.twinx()
    nested = "cold" in next(iter(rows.values()))
    for name, colour in (("cold", "#357"), ("warm", "#b44")) if nested else (("", "#b44"),):
        some = [row[name] if nested else row for row in rows.values()]
        axes.plot(list(rows), [one["wall_s"] for one in some], "o-", color=colour, label=f"{name} s".strip())
        right.plot(
            list(rows), [one["peak_anonymous_bytes"] / 1e9 for one in some], "x:", color=colour, label=f"{name} GB"
        )
    right.set_ylim(bottom=0)
    right.set_ylabel("GB, anonymous (dotted)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("seconds")
    axes.legend()
