"""The commands for the tables and figures of CASA's paper (arXiv 2605.01929), printed or run, one experiment at a time.

    python examples/reproduce/reproduce.py list
    python examples/reproduce/reproduce.py show fastwan-jinx -o results/
    python examples/reproduce/reproduce.py run fastwan-jinx -o results/

Every command resumes where it was stopped, so `run` may be given again. What nobody has published (the paper's prompts,
some of its LoRAs, its seeds) is said in `docs/how-to/reproduce.md`. `--names FILE` puts other models and LoRAs in the
place of these, a JSON object; `--small` takes two prompts and tiny clips: together they rehearse an experiment on tiny
pipelines.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

WAN, WAN_PIPELINE = "wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WAN_14B, WAN_14B_PIPELINE = "wan2.1-t2v-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
FASTWAN, FASTWAN_PIPELINE = "fastwan2.1-t2v-1.3b", "FastVideo/FastWan2.1-T2V-1.3B-Diffusers"
HUNYUAN_PIPELINE = "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v"
HUNYUAN_DISTILLED = "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v_distilled"
JINX, STEAMBOAT = "Cseti/Wan-LoRA-Arcane-Jinx-v2", "benjamin-paine/steamboat-willie-1.3b"
STEAMBOAT_14B = "benjamin-paine/steamboat-willie-14b"
HUNYUAN_LORA = "YOUR-HUNYUANVIDEO-1.5-LORA"
SIZE = ("--frames", "81", "--size", "480x832")
SMALL = ("--frames", "5", "--size", "32x32", "--first", "2", "--source-steps", "2")
FASTWAN_STEPS = ("--target-timesteps", "1000,757,522")
TAUS = ("0.1", "0.5", "1", "3", "10")
METRICS = "free,casa"


@dataclass(frozen=True)
class Experiment:
    """Some cells of the paper that are made together."""

    name: str
    paper: str
    """Which tables or figures."""
    lora: str
    pair: tuple[str, str]
    """Source and target as `compare` takes them, or as `transfer` does where no pipeline runs the target."""
    methods: tuple[str, ...] = ("casa",)
    kind: str = "compare"
    """compare, sweep (Fig. 8), probe (Tables 5 and 6, Fig. 13, 14), or merge: the target's own program makes clips."""
    options: tuple[str, ...] = ()
    weights: tuple[str, str] = ("", "")
    """The networks alone, where `pair` are pipelines and probes are made of them."""


ABLATION = ("casa", "restore-only", "arbitrate-only", "prolora", "undo:0.25")
EXPERIMENTS = (
    Experiment("fastwan-steamboat", "Tables 1–3", STEAMBOAT, (WAN_PIPELINE, FASTWAN_PIPELINE), ABLATION,
               options=FASTWAN_STEPS),
    Experiment("fastwan-jinx", "Tables 1–3", JINX, (WAN_PIPELINE, FASTWAN_PIPELINE), ABLATION, options=FASTWAN_STEPS),
    Experiment("rolling-steamboat", "Table 1", STEAMBOAT, (WAN, "rolling-forcing"), kind="merge"),
    Experiment("rolling-jinx", "Table 1", JINX, (WAN, "rolling-forcing"), kind="merge"),
    Experiment("krea-steamboat", "Table 1", STEAMBOAT_14B, (WAN_14B, "krea-realtime-14b"), kind="merge"),
    Experiment("hunyuan", "Table 4", HUNYUAN_LORA, (HUNYUAN_PIPELINE, HUNYUAN_DISTILLED)),
    Experiment("tau", "Fig. 8", JINX, (WAN_PIPELINE, FASTWAN_PIPELINE), TAUS, "sweep", FASTWAN_STEPS, (WAN, FASTWAN)),
    Experiment("probes", "Tables 5 and 6, Fig. 13 and 14", JINX, (WAN_PIPELINE, FASTWAN_PIPELINE),
               ("keep-dominant", "over-activate"), "probe", FASTWAN_STEPS, (WAN, FASTWAN)),
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Where results go, and what stands in the place of the experiment's models and settings."""

    folder: Path
    names: Mapping[str, str]
    seeds: int = 3
    small: bool = False
    metrics: str = METRICS
    more: tuple[str, ...] = ()

    def name(self, known: str) -> str:
        """Return what a model or LoRA is called here."""
        return self.names.get(known, known)


Command = tuple[str, ...]
"""The words of a command; one that begins with `#` is for people."""


def commands(experiment: Experiment, setup: Setup) -> Iterator[Command]:
    """Yield the commands of an experiment, in order."""
    steps = {"compare": _compared, "sweep": _swept, "probe": _probed, "merge": _merged}
    yield from steps[experiment.kind](experiment, setup)


def _compare(experiment: Experiment, setup: Setup, folder: Path, *more: str) -> Command:
    source, target = (setup.name(place) for place in experiment.pair)
    sizes = SMALL if setup.small else SIZE
    seeds = ("--seeds", "1" if setup.small else str(setup.seeds))
    return (
        "loraport", "compare", setup.name(experiment.lora), "--source", source, "--target", target, *more, *sizes,
        *seeds, *experiment.options, *setup.more, "-o", str(folder),
    )  # fmt: skip


def _evaluate(setup: Setup, report: Path, *folders: Path | str) -> Command:
    return ("loraport", "evaluate", *map(str, folders), "--metrics", setup.metrics, "-o", str(report))


def _compared(experiment: Experiment, setup: Setup) -> Iterator[Command]:
    grid = setup.folder / experiment.name
    yield _compare(experiment, setup, grid, "--with", ",".join(experiment.methods))
    yield _evaluate(setup, setup.folder / f"{experiment.name}-report", grid)


def _swept(experiment: Experiment, setup: Setup) -> Iterator[Command]:
    source, target = (setup.name(place) for place in experiment.weights)
    files = []
    for tau in experiment.methods:
        files.append(str(setup.folder / f"tau-{tau}.safetensors"))
        yield ("loraport", "transfer", setup.name(experiment.lora), "--source", source, "--target", target, "--tau",
               tau, "--format", "diffusers", "-o", files[-1])  # fmt: skip
    grid = setup.folder / experiment.name
    yield _compare(experiment, setup, grid, "--with", ",".join(files))
    yield _evaluate(setup, setup.folder / f"{experiment.name}-report", grid)


def _probed(experiment: Experiment, setup: Setup) -> Iterator[Command]:
    """Sample the models of appendix B.2 without a LoRA, which `compare` calls `target`."""
    source, target = (setup.name(place) for place in experiment.weights)
    whole = setup.folder / f"{experiment.name}-whole"
    yield _compare(experiment, setup, whole)
    columns = [whole / "clips" / "target"]
    for probe in experiment.methods:
        model, grid = setup.folder / probe, setup.folder / f"{experiment.name}-{probe}"
        yield ("loraport", "probe", probe, "--source", source, "--target", target, "-o", str(model))
        pipeline = ("--pipeline", setup.name(experiment.pair[1]))
        placed = replace(setup, names={**setup.names, experiment.pair[1]: str(model)})
        yield _compare(experiment, placed, grid, *pipeline)
        columns.append(grid / "clips" / "target")
    yield _evaluate(setup, setup.folder / f"{experiment.name}-report", *columns)


def _merged(experiment: Experiment, setup: Setup) -> Iterator[Command]:
    """Merge the LoRA into targets that no diffusers pipeline runs; their own programs make the clips."""
    source, target = (setup.name(place) for place in experiment.pair)
    folder = setup.folder / experiment.name
    lora = setup.name(experiment.lora)
    yield ("#", f"make clips of {source} with {lora}: loraport compare, or its own program, into {folder}/source+lora")
    columns: list[Path | str] = []
    for method in ("direct", *experiment.methods):
        moved, model = folder / f"{method}.safetensors", folder / f"{target}-{method}.safetensors"
        yield ("loraport", "transfer", lora, "--source", source, "--target", target, "--method", method, 
               "-o", str(moved))  # fmt: skip
        yield ("loraport", "merge", target, str(moved), "-o", str(model))
        yield (
            "#",
            f"make clips with {model} by the target's own program into {folder}/{method}, named PROMPT-SEED.mp4",
        )
        columns.append(folder / method)
    report = setup.folder / f"{experiment.name}-report"
    yield ("#", shlex.join((*_evaluate(setup, report, *columns), "--reference", str(folder / "source+lora"))))


def find_experiment(name: str) -> Experiment:
    """Return the experiment of that name, or end the program."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    known = ", ".join(experiment.name for experiment in EXPERIMENTS)
    sys.exit(f"there is no experiment {name!r}; known: {known}")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("do", choices=("list", "show", "run"))
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("-o", "--output", default="results")
    parser.add_argument("--names", help="JSON: {model or LoRA: what stands in its place}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="two prompts, tiny clips")
    parser.add_argument("--metrics", default=METRICS)
    parser.add_argument("--compare-options", default="", help="further options of compare, such as '--offload group'")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Print the experiments, or the commands of one, or run them until one fails."""
    options = parse(words)
    if options.do == "list" or options.experiment is None:
        for experiment in EXPERIMENTS:
            print(f"{experiment.name:<18} {experiment.paper}: {experiment.lora} on {experiment.pair[1]}")
        return
    names = json.loads(Path(options.names).read_text(encoding="utf-8")) if options.names else {}
    more = tuple(shlex.split(options.compare_options))
    folder = Path(options.output)
    setup = Setup(folder, names, options.seeds, options.small, options.metrics, more)
    for command in commands(find_experiment(options.experiment), setup):
        print(f"# {command[1]}" if command[0] == "#" else shlex.join(command), flush=True)
        if options.do == "run" and command[0] != "#":
            code = run(command)
            if code not in (0, 3):  # 3: done, and something was left out, which the command has said
                sys.exit(code)


def run(command: Command) -> int:
    """Run a command and return its exit code; one whose file is there already is done."""
    output = Path(command[command.index("-o") + 1])
    if command[1] in ("transfer", "merge", "probe") and output.exists():
        print(f"# {output} is there already")
        return 0
    output.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.run([sys.executable, "-m", *command]).returncode


if __name__ == "__main__":
    main()
