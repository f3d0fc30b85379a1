"""The results of a suite as JSON, as a table of targets in Markdown, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def net(row: Row, name: str, key: str = "wall_s") -> float:
    """Seconds of one contender without its start."""
    start = row["published start" if name.startswith("published") else "start"][key]
    return max(row[name][key] - start, 0.01)


def ratios(rounds: Sequence[Row], above: Sequence[str], below: Sequence[str], key: str) -> list[float]:
    """Σ net(above) / Σ net(below), in each round that has them."""
    complete = [row for row in rounds if all(name in row for name in (*above, *below))]
    return [sum(net(row, n, key) for n in above) / sum(net(row, n, key) for n in below) for row in complete]


EVERYTHING = ("published svd", "published cfft", "published transfer")
SEVERAL = 5
"""LoRAs in one run, from which follows what a further one costs."""

COMPARED = {
    "cold against the published pipeline, times faster": (EVERYTHING, ("cold",), "≥ 4"),
    "warm against its transfer step, times faster": (EVERYTHING[2:], ("warm",), "≥ 10"),
    "without a cache against cold": (("no cache",), ("cold",), "≤ 1"),
    "two threads against one, warm": (("warm, one thread",), ("warm",), "≥ 1.7"),
}


def targets(result: Row) -> dict[str, Row]:
    """Each measured quantity: the ratios of all rounds, their median, and what was aimed at."""
    rounds, disk, rows = result["rounds"], result["disk"], {}
    for name, (above, below, target) in COMPARED.items():
        for key in ("wall_s", "cpu_s") if "threads" not in name else ("wall_s",):
            rows[f"{name} ({key[:-2]})"] = (ratios(rounds, above, below, key), target)
    for kind, target in (("products", "≤ 2"), ("stored", "–")):
        floors = [row["floor"][kind] for row in rounds]
        for key in ("wall_s", "cpu_s"):
            times = [net(row, "warm", key) / floor[key] for row, floor in zip(rounds, floors, strict=True)]
            rows[f"warm against the floor, {kind} ({key[:-2]})"] = (times, target)
    one, both = ([row[name]["products"]["gemm_s"] for row in rounds] for name in ("floor, one thread", "floor"))
    rows["bare products, two threads against one (wall)"] = ([a / b for a, b in zip(one, both, strict=True)], "–")
    for key in ("wall_s", "cpu_s"):
        further = [
            (row[f"warm, {SEVERAL} LoRAs"][key] - row["warm"][key]) / (SEVERAL - 1) / net(row, "warm", key)
            for row in rounds
        ]
        rows[f"a further LoRA, share of a warm run ({key[:-2]})"] = (further, "≤ 0.3")
    memory = [row[name]["peak_anonymous_bytes"] / 1e9 for row in rounds for name in ("cold", "warm", "no cache")]
    rows["peak of anonymous memory, GB"] = ([max(memory)], "≤ 1.5 (1.3B), ≤ 4 (14B)")
    rows["cache against the published one by shapes"] = ([disk["ours"] / disk["published_by_shapes"]], "≤ 0.167")
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
        runs = [row[name] for row in result["rounds"] if name in row]
        sizes = ("peak_anonymous_bytes", "peak_rss_bytes", "bytes_read", "bytes_written")
        cells = [f"{median(run[key] for run in runs):.1f}" for key in ("wall_s", "cpu_s")]
        cells += [f"{max(run[key] for run in runs) / 1e9:.2f}" for key in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *_stage_lines(result["rounds"])]
    if "growth" in result:
        lines += ["", *_growth_lines(result["growth"])]
    return "\n".join(lines) + "\n"


def _stage_lines(rounds: Sequence[Row]) -> list[str]:
    """Where our own runs spend their time; threads are added up, so that two may make twice the wall time."""
    names = [name for name in rounds[0] if "basis" in rounds[0][name].get("stages", {})]
    stages = [stage for stage in rounds[0][names[0]]["stages"] if stage not in ("total", "layers")] if names else []
    lines = [f"| seconds of all threads | {' | '.join(stages)} |", "|---|" + "---|" * len(stages)]
    for name in names:
        cells = [f"{median(row[name]['stages'][stage] for row in rounds):.2f}" for stage in stages]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _growth_lines(growth: Row) -> list[str]:
    lines = [f"Growth, layers {growth['width']} wide, CPU seconds:", ""]
    lines += ["| blocks | cold | warm | cold GB | warm GB |", "|---|---|---|---|---|"]
    for blocks, row in growth["by_blocks"].items():
        cells = [f"{row[name]['cpu_s']:.1f}" for name in ("cold", "warm")]
        cells += [f"{row[name]['peak_anonymous_bytes'] / 1e9:.2f}" for name in ("cold", "warm")]
        lines.append(f"| {blocks} | {' | '.join(cells)} |")
    lines += ["", f"| LoRAs ({growth['blocks_of_loras']} blocks) | warm | GB |", "|---|---|---|"]
    for loras, row in growth["by_loras"].items():
        lines.append(f"| {loras} | {row['cpu_s']:.1f} | {row['peak_anonymous_bytes'] / 1e9:.2f} |")
    return lines


def plot(path: Path, result: Row) -> None:
    """Bars of wall times; curves of growth where they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    growth = result.get("growth")
    figure, axes = plt.subplots(1, 3 if growth else 1, figsize=(13 if growth else 6, 3.6), squeeze=False)
    names = list(dict.fromkeys(name for row in result["rounds"] for name in row if not name.startswith("floor")))
    seconds = [median(row[name]["cpu_s"] for row in result["rounds"] if name in row) for name in names]
    floors = {
        f"floor, {kind}": median(row["floor"][kind]["cpu_s"] for row in result["rounds"])
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
    bars.set_xlabel("CPU seconds")
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
    most = 0.0
    for name, colour in (("cold", "#357"), ("warm", "#b44")) if nested else (("warm", "#b44"),):
        runs = [row[name] if nested else row for row in rows.values()]
        places, memory = [int(place) for place in rows], [run["peak_anonymous_bytes"] / 1e9 for run in runs]
        axes.plot(places, [run["cpu_s"] for run in runs], "o-", color=colour, label=name)
        right.plot(places, memory, "x:", color=colour)
        most = max(most, *memory)
    right.set_ylim(0, 1.6 * most)
    right.set_ylabel("GB, anonymous (dotted)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("CPU seconds")
    axes.legend(loc="upper left")
