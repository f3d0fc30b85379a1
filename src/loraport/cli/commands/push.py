"""`push`: publish a moved LoRA on the Hub with a card, or write the card beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from loraport.cli.options import FILES, OUTPUT, MessageOptions, need
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.errors import InputError, OutputError, SettingsError

if TYPE_CHECKING:
    from loraport.publishing.moved_lora import MovedLora

app = typer.Typer()


@dataclass(frozen=True)
class CardOptions:
    """What the card says beside what the file itself does."""

    heading: ClassVar[str] = "Card"
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The LoRA's licence.", show_default="what the file's header says"),
    ] = None
    source: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/REPO", help="The source on the Hub, or a name from `loraport presets`.",
            show_default="by the header, where it names a preset",
        ),
    ] = None  # fmt: skip
    target: Annotated[
        str | None, typer.Option(metavar="ORG/REPO", help="The target, likewise.", show_default="likewise")
    ] = None
    compare: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="What `loraport compare` wrote: its clips are shown.")
    ] = None
    evaluation: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="What `loraport evaluate` wrote of that comparison: its numbers."),
    ] = None
    report: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="The page that transfer --report wrote, to go along.")
    ] = None


@dataclass(frozen=True)
class PlaceOptions:
    """Where it goes, and how."""

    heading: ClassVar[str] = OUTPUT
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files; no network is touched.")] = (
        False
    )
    create: Annotated[bool, typer.Option("--create", help="Make the repository, private, if it is not there.")] = False
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the files as a pull request.")] = False
    card: Annotated[
        str | None, typer.Option(metavar="OUT.md", help="Write the card to this file; without REPO nothing else.")
    ] = None


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport push style-fastwan.safetensors you/style-fastwan --license apache-2.0 --dry-run",
)
@with_options
def push(
    card: CardOptions,
    place: PlaceOptions,
    messages: MessageOptions,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The LoRA that transfer wrote.", rich_help_panel=FILES)],
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help="org/repo on the Hub.", rich_help_panel=FILES)
    ] = None,
) -> None:
    """Publish a moved LoRA on the Hub in one commit: the file, how it was made, and a card that says what it is."""
    need("huggingface_hub", extra="hub")
    from loraport.files.disk.atomic import write_whole
    from loraport.plain_json import json_text
    from loraport.publishing.card import card_text
    from loraport.publishing.measured import read_gallery, read_numbers
    from loraport.publishing.moved_lora import read_moved
    from loraport.publishing.upload import CARD, publish

    _check(repo, card, place)
    lora = read_moved(file, card.license, card.source, card.target)
    gallery = None if card.compare is None else read_gallery(card.compare, lora)
    numbers = None if card.evaluation is None or gallery is None else read_numbers(card.evaluation, gallery)
    report = None if card.report is None else _report(card.report)
    text = card_text(lora, repo, gallery, numbers, None if report is None else "report.html")
    files: dict[str, Path | bytes] = {**lora.files, CARD: text.encode()}
    files["loraport.json"] = (json_text(lora.as_json(), indent=1) + "\n").encode()
    files |= {} if report is None else {"report.html": report}
    files |= {} if gallery is None else gallery.files
    notes = _notes(lora)
    if place.card is not None and not place.dry_run:
        write_whole(_card_path(place.card), text.encode())
    done = None
    if repo is not None and not place.dry_run:
        with messages.terminal() as terminal:
            terminal.note(f"publishing {len(files)} files in {repo}")
            done = publish(
                repo, files, f"{lora.path.name}, moved by loraport", create=place.create, pull_request=place.create_pr
            )
    facts: dict[str, object] = {
        "repo": repo, "files": {name: _size(content) for name, content in files.items()}, "card": text,
        "written": None if place.dry_run else place.card, "commit": done and done.commit,
        "pull_request": done and done.pull_request, "created": bool(done and done.created), "notes": notes,
    }  # fmt: skip
    _say(facts, messages, dry=place.dry_run)


def _check(repo: str | None, card: CardOptions, place: PlaceOptions) -> None:
    from loraport.publishing.moved_lora import HUB_ID

    if repo is None and place.card is None and not place.dry_run:
        raise SettingsError("name a repository (org/repo), or --card README.md for the card alone")
    if repo is not None and not HUB_ID.fullmatch(repo):
        raise SettingsError(f"{repo!r} is no repository of the Hub; write org/repo")
    if repo is None and (place.create or place.create_pr):
        raise SettingsError("--create and --create-pr do nothing without a repository; name one, or leave them out")
    if card.evaluation is not None and card.compare is None:
        raise SettingsError("--evaluation needs --compare beside it, which says which column this file made")


def _report(place: str) -> Path:
    path = Path(place).expanduser()
    if not path.is_file() or path.suffix.lower() != ".html":
        raise InputError(f"{place} is not a page; name the .html file that transfer --report wrote")
    return path


def _card_path(place: str) -> Path:
    """Return where the card goes. Raises OutputError where a card is that is not ours."""
    from loraport.files.disk.free_space import check_writable
    from loraport.publishing.card import is_ours

    path = Path(place).expanduser()
    if path.suffix.lower() != ".md" or path.is_dir():
        raise OutputError(f"{place} cannot be a card: name a .md file")
    if path.exists() and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise OutputError(f"{place} is there already, and loraport did not write it; name another file")
    check_writable(path)
    return path


def _notes(lora: MovedLora) -> list[str]:
    missing = [name for name, known in (("target", lora.target), ("source", lora.source)) if known is None]
    lack = {"target": "the card has no base_model", "source": "the card's base_model lacks it"}
    notes = [
        f"the file calls its {name} {lora.made.get(name, '?')!r}, which is no place on the Hub that is known here, so "
        f"{lack[name]}; name it with --{name} ORG/REPO"
        for name in missing
    ]
    if lora.header_licence is not None and lora.header_licence.strip().lower() != lora.licence.lower():
        notes.append(f"the file's header says {lora.header_licence!r}; the card says {lora.licence!r}, as you named it")
    return notes


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _say(facts: dict[str, object], messages: MessageOptions, *, dry: bool) -> None:
    from loraport import console

    if not messages.quiet:
        for note in facts["notes"] if isinstance(facts["notes"], list) else ():
            messages.terminal().note(note)
    if messages.json:
        console.print_facts(facts, json=True)
        return
    if dry:
        print(facts["card"])
        sizes = facts["files"] if isinstance(facts["files"], dict) else {}
        for name, size in sizes.items():
            print(f"{size:>12} bytes  {name}")
    elif not messages.quiet:
        shown = {"card": facts["written"], "commit": facts["commit"], "pull request": facts["pull_request"]}
        for name, value in shown.items():
            if value:
                print(f"{name}  {value}")
