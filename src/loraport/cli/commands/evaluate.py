"""`evaluate`: numbers for clips that are there, compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from loraport.cli.options import FILES, OUTPUT, DeviceOptions, MessageOptions, Overwrite, need
from loraport.cli.options.existing import keep_foreign
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.errors import LOST, TO_FETCH, MissingError, SettingsError

if TYPE_CHECKING:
    from loraport.evaluation.results import EvaluationResult

app = typer.Typer()


@dataclass(frozen=True)
class MetricOptions:
    """What is measured."""

    heading: ClassVar[str] = "Metrics"
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Metrics by name, or free, casa, prolora, all; --list has them.",
            show_default="all whose weights are here",
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A folder with the weights of networks: DIR/ORG/NAME/FILE.",
            show_default="the Hub's cache",
        ),
    ] = None  # fmt: skip
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the weights of the metrics that --metrics names.")
    ] = False
    listed: Annotated[bool, typer.Option("--list", help="Print all metrics, what each needs, and leave.")] = False


@dataclass(frozen=True)
class PairingOptions:
    """What is compared with what."""

    heading: ClassVar[str] = "Comparison"
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="What clips should be like: a folder, or one of the columns.",
            show_default="source+lora of a comparison",
        ),
    ] = None  # fmt: skip
    against: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The column that differences are taken from.", show_default="direct, or the first"
        ),
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of plain folders: .json {name: prompt}, .jsonl of id and text, or lines: name, tab, prompt.",
        ),
    ] = None


@app.command(cls=GroupedCommand, epilog="Example: loraport evaluate comparison/ -o report/")
@with_options
def evaluate(
    device: DeviceOptions,
    messages: MessageOptions,
    measured: MetricOptions,
    pairing: PairingOptions,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER...",
            help="What `loraport compare` wrote, or folders of clips, a column each, paired by file name.",
            rich_help_panel=FILES,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where page and tables go.", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure clips, and compare columns in pairs of clips, with intervals, and with controls beside style scores."""
    from loraport import console
    from loraport.evaluation.catalogue import choose_metrics, metric_rows

    if measured.listed:
        rows = metric_rows()
        console.print_facts({"metrics": rows} if messages.json else _words(rows), json=messages.json)
        return
    if not folders or output is None:
        raise SettingsError("name folders of clips and, with -o, where the report goes; --list prints the metrics")
    need("av", "PIL", extra="evaluate")
    names = [name.strip() for name in (measured.metrics or "").split(",") if name.strip()]
    if measured.download and not names:
        raise SettingsError("--download fetches the weights of metrics that are named: add --metrics, such as casa")
    choice = choose_metrics(names)

    from loraport.evaluation.plain_folders import read_prompts
    from loraport.evaluation.run import EvaluationRequest
    from loraport.evaluation.run import evaluate as run
    from loraport.files.disk.user_paths import expand_home
    from loraport.reports.evaluation.page import EVALUATION_FILES, write_evaluation_page

    folder = _report_folder(output, [*folders, pairing.reference])
    keep_foreign(folder, EVALUATION_FILES, overwrite)
    request = EvaluationRequest(
        tuple(folders), folder, choice, pairing.reference, pairing.against,
        None if pairing.prompts is None else read_prompts(pairing.prompts),
        None if measured.weights is None else expand_home(measured.weights), measured.download, device.device,
        device.folder,
    )  # fmt: skip
    try:
        with messages.terminal() as terminal:
            result = run(request, terminal)
            page = write_evaluation_page(result, folder)
    except MissingError as error:
        typer.echo(f"loraport: {error}", err=True)
        raise typer.Exit(TO_FETCH) from error
    _report(result, page, messages)
    raise typer.Exit(TO_FETCH if result.missing else LOST if result.left_out else 0)


def _report(result: EvaluationResult, page: Path, messages: MessageOptions) -> None:
    from loraport import console
    from loraport.reports.evaluation.words import findings

    if not messages.quiet:
        terminal = messages.terminal()
        for grid in result.grids:
            for note in grid.notes:
                terminal.note(note)
        for sentence in result.skipped:
            terminal.note(sentence)
    for sentence in (*result.left_out, *map(str, result.missing)):
        typer.echo(f"loraport: {sentence}", err=True)
    if messages.json:
        console.print_facts({**result.as_json(), "page": str(page)}, json=True)
    elif not messages.quiet:
        for grid in result.grids:
            for sentence in findings(grid):
                print(sentence)
        print(f"page  {page}")


def _report_folder(output: str, inputs: list[str | None]) -> Path:
    from loraport.cli.options import folder_path
    from loraport.errors import OutputError

    place = Path(output).expanduser()
    for one in inputs:
        if (
            one is not None
            and place.exists()
            and Path(one).expanduser().exists()
            and place.samefile(Path(one).expanduser())
        ):
            raise OutputError(f"{output} is one of the folders that are measured; name another one for the report")
    return folder_path(output)


def _words(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the list of metrics for people: what each is, what it needs, and how its weights are had."""
    words = {}
    for row in rows:
        lines = [row["words"]]
        if row["needs"]:
            lines.append(f"needs {' and '.join(row['needs'])}")
        for weights in row["weights"]:
            size = "" if weights["bytes"] is None else f"{weights['bytes'] / 1e9:.2f} GB, "
            lines.append(f"weights {weights['repo']}, {size}licence: {weights['licence']}; {weights['command']}")
        if row["papers"]:
            lines.append(f"in the tables of {' and '.join(row['papers'])}")
        words[row["name"]] = "\n".join(lines)
    return words
