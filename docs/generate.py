"""Write the pages that are made: commands, library, modules, the lab's tables; `--check` only says which are stale."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGES = [ROOT / "src" / "loraport", ROOT / "lab" / "src" / "loraport_lab"]
sys.path[:0] = [
    str(DOCS),
    *(str(package.parent) for package in PACKAGES),
]  # the pages are of this checkout, whatever is installed

import family_pages  # noqa: E402

import loraport  # noqa: E402
from loraport.cli import app  # noqa: E402
from loraport.cli.options.help import MESSAGES, default_text  # noqa: E402
from loraport.evaluation.catalogue import METRICS  # noqa: E402
from loraport.evaluation.metrics.metric import Metric, Weights  # noqa: E402
from loraport_lab.pages.lab_editions import EDITIONS, editions_csv  # noqa: E402
from loraport_lab.pages.lab_results import first_family_page, results_page  # noqa: E402

NOTE = "<!-- Made by `make docs` from the program; edit the program instead. -->"
BEGIN, END = "<!-- modules: made by `make docs` from their docstrings -->", "<!-- end of modules -->"
METRICS_BEGIN, METRICS_END = "<!-- metrics: made by `make docs` from the program -->", "<!-- end of metrics -->"
WEIGHTS_BEGIN, WEIGHTS_END = "<!-- weights: made by `make docs` from the program -->", "<!-- end of weights -->"
WIDTH = 120


def commands(command: Any, words: tuple[str, ...] = ("loraport",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, depth first, with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, child in inner.items():
        if not child.hidden:
            yield from commands(child, (*words, name))


def all_commands() -> list[tuple[tuple[str, ...], Any]]:
    """Return the commands of the program."""
    return list(commands(typer.main.get_command(app)))


def cli_page() -> str:
    """Return reference/cli.md: each command with its options, in the groups that `--help` shows."""
    sections = "\n".join(_section(words, command) for words, command in all_commands())
    intro = _wrapped(
        "Progress and messages go to stderr, results to stdout. With `--json`, stdout holds one JSON object and "
        "nothing else. What the numbers mean with which a command ends: [exit codes](exit-codes.md)."
    )
    return f"# Commands\n\n{NOTE}\n\n{intro}\n\n{sections}"


def _section(words: tuple[str, ...], command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    shown = [_argument(p) for p in arguments]
    shown += [f"{p.opts[0]} {_metavar(p)}" for p in options if p.required]
    usage = " ".join([*words, *shown, "[OPTIONS]"])
    groups: dict[str, list[str]] = {}
    for p in (*arguments, *options):
        row = f"| {_spelled(p)} | {_cell(p.help)}{_default(p)} |"
        groups.setdefault(getattr(p, "rich_help_panel", None) or MESSAGES, []).append(row)
    if MESSAGES in groups:
        groups[MESSAGES] = groups.pop(MESSAGES)  # at the end, as in --help
    tables = []
    for group, rows in groups.items():
        tables.append(f"**{group}**\n\n" + "\n".join(["| option | meaning |", "|---|---|", *rows]))
    example = (command.epilog or "").removeprefix("Example: ")
    help = "\n\n".join(_wrapped(part) for part in inspect.cleandoc(command.help).split("\n\n"))
    return (
        f"## {' '.join(words)}\n\n{help}\n\n```text\n{usage}\n```\n\n"
        + "\n\n".join(tables)
        + f"\n\nExample:\n\n```sh\n{example}\n```\n"
    )


def _argument(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _metavar(param: Any) -> str:
    numbers = {"<float>": "NUMBER", "<int>": "INT"}
    return str(param.metavar or numbers.get(param.display_type(None)) or param.name.rstrip("_").upper())


def _spelled(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{_cell(_argument(param))}`"
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    return names if param.is_flag else f"{names} `{_metavar(param)}`"


def _default(param: Any) -> str:
    default = "" if param.required else default_text(param).removeprefix("default: ")
    if not default:
        return ""
    return f" Default: {default}." if " " in default else f" Default: `{default}`."


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def library_page() -> str:
    """Return reference/library.md: every public name with its signature, its fields and its documentation."""
    values = {name: getattr(loraport, name) for name in loraport.__all__}
    groups: dict[str, list[str]] = {"Functions": [], "Settings": [], "Values and results": [], "Errors": []}
    for name, value in values.items():
        groups[_kind(name, value)].append(_entry(name, value))
    intro = _wrapped(
        "What `import loraport` offers. A name is loaded when it is first used, so the import itself is quick. "
        "Everything else in the package may change between versions. [From Python](../how-to/python.md) has short "
        "programs, and so has the notebook `examples/from_python.ipynb` in the repository; `examples/one_layer.py` "
        "uses the parts one by one."
    )
    body = "\n".join(f"## {title}\n\n" + "\n".join(entries) for title, entries in groups.items() if entries)
    return f"# The library\n\n{NOTE}\n\n{intro}\n\n{body}\n{_room_of_pipelines()}"


def _room_of_pipelines() -> str:
    """`loraport.diffusers`, whose names are not among those of `loraport` itself."""
    room = loraport.diffusers
    intro = _wrapped((inspect.getdoc(room) or "").split("\n\n")[0])
    names = ("load", "unload", "LoadedLora")
    entries = [_entry(f"diffusers.{name}", getattr(room, name)) for name in names]
    return f"## In a pipeline of diffusers\n\n{intro}\n\n" + "\n".join(entries)


def _kind(name: str, value: Any) -> str:
    if not isinstance(value, type):
        return "Functions"
    if issubclass(value, Exception):
        return "Errors"
    return "Settings" if name.endswith(("Config", "Settings", "Rule")) else "Values and results"


def _entry(name: str, value: Any) -> str:
    lines = [f"### {name}", ""]
    if _kind(name, value) in ("Functions", "Settings"):
        lines += ["```python", *_signature(f"loraport.{name}", value), "```", ""]
    lines += [_docstring(value), ""]
    if isinstance(value, type):
        rows = [f"| `{_cell(field)}` | {_cell(text)} |" for field, text in _fields(value, _kind(name, value)).items()]
        rows += [f"| `{call}` | {_cell(text)} |" for call, text in _methods(value)]
        if rows:
            lines += ["| member | what it is |", "|---|---|", *rows, ""]
    lines += [f"Defined in `{value.__module__}`.", ""]
    return "\n".join(lines)


def _signature(name: str, value: Any) -> list[str]:
    """`name(a: int, b: str = "x") -> C`, one parameter a line where it is long."""
    signature = inspect.signature(value)
    parameters = _starred([_parameter(p) for p in signature.parameters.values()], list(signature.parameters.values()))
    result = "" if isinstance(value, type) else f" -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= 100:
        return [line]
    return [f"{name}(", *(f"    {parameter}," for parameter in parameters), f"){result}"]


def _starred(texts: list[str], parameters: list[inspect.Parameter]) -> list[str]:
    """The parameters' texts with the bare `*` in front of the first that can only be given by name."""
    first = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if first is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return texts
    return [*texts[:first], "*", *texts[first:]]


def _parameter(parameter: inspect.Parameter) -> str:
    kind = parameter.kind
    stars = "*" if kind is parameter.VAR_POSITIONAL else "**" if kind is parameter.VAR_KEYWORD else ""
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    if dataclasses.is_dataclass(default) and default == _plain(type(default)):
        return f"{text} = {type(default).__name__}()"
    if type(default).__repr__ is object.__repr__ or repr(default).startswith("<"):  # type: ignore[comparison-overlap]
        return f"{text} = ..."
    return f"{text} = {default!r}"


def _plain(kind: type) -> Any:
    """Return a value of a class with nothing but defaults, or None where it has none."""
    try:
        return kind()
    except TypeError:
        return None


def _annotation(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\bGiven\b", "Place | Sequence[Place]", text)
    text = re.sub(r"\bPlace\b", "str | Path | Mapping[str, Tensor]", text)
    text = re.sub(r"\b(?:jaxtyping|torch|collections\.abc|typing|pathlib)\.(?=[A-Z])", "", text)
    return re.sub(r"\bloraport(?:\.\w+)*\.(?=[A-Z])", "", text)


def _docstring(value: Any) -> str:
    """The docstring in Markdown; what stands indented in it is a program."""
    paragraphs = (inspect.getdoc(value) or "").split("\n\n")
    parts: list[str] = []
    for indented, group in itertools.groupby(paragraphs, lambda text: text.startswith("    ")):
        texts = list(group)
        parts += [_program("\n\n".join(texts))] if indented else map(_wrapped, texts)
    return "\n\n".join(parts)


def _program(text: str) -> str:
    code = textwrap.dedent(text)
    start = "" if "import loraport" in code else "import loraport\n\n"
    return f"```python\n{start}{code}\n```"


def _fields(value: type, kind: str) -> dict[str, str]:
    """Return {field with its type: the text below it} of a class, its parents' fields first.

    Of settings, whose signature stands above the table, only the fields that have a text.
    """
    found: dict[str, str] = {}
    for parent in reversed(value.__mro__):
        if not parent.__module__.startswith("loraport"):
            continue
        body = getattr(ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0], "body", [])
        for statement, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            name = statement.target.id
            if not name.startswith("_") and (text or kind != "Settings"):
                shown = name if kind == "Settings" else f"{name}: {_annotation(ast.unparse(statement.annotation))}"
                found[shown] = text
    return found


def _methods(value: type) -> Iterator[tuple[str, str]]:
    """(call, first sentence) of the public methods and properties that a class defines."""
    for name, member in vars(value).items():
        if name.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, classmethod | staticmethod) or inspect.isfunction(member):
            parameters = list(inspect.signature(getattr(value, name)).parameters.values())
            shown = ", ".join(p.name for p in parameters if p.name != "self")
            yield f"{name}({shown})", _first_sentence(member)
        elif isinstance(member, property) or hasattr(member, "__get__"):
            yield name, _first_sentence(member)


def _first_sentence(value: object) -> str:
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<!Eq)\. ", text)[0].rstrip(".") + "."


def architecture_page() -> str:
    """Return explanation/architecture.md with the list of modules between its two marks made anew."""
    return _between(ARCHITECTURE.read_text(encoding="utf-8"), BEGIN, module_tables(PACKAGES), END)


def _between(text: str, begin: str, made: str, end: str) -> str:
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n\n{made}\n{end}{after}"


def metrics_page() -> str:
    """Return reference/metrics.md with its two tables between their marks made anew."""
    text = METRICS_PAGE.read_text(encoding="utf-8")
    weights = {one: None for metric in METRICS.values() for one in metric.instrument.weights}
    text = _between(text, METRICS_BEGIN, _table(_METRIC_HEAD, map(_metric_row, METRICS.values())), METRICS_END)
    return _between(text, WEIGHTS_BEGIN, _table(_WEIGHTS_HEAD, map(_weights_row, weights)), WEIGHTS_END)


_METRIC_HEAD = ("metric", "what it says", "better", "needs", "in the tables of")
_WEIGHTS_HEAD = ("files", "for", "size", "licence", "get them")


def _metric_row(metric: Metric) -> tuple[str, ...]:
    better = f"{metric.ideal:g}" if metric.ideal is not None else metric.better or ""
    return f"`{metric.name}`", metric.words, better, ", ".join(sorted(metric.needs)), ", ".join(metric.papers)


def _weights_row(weights: Weights) -> tuple[str, ...]:
    users = [metric.name for metric in METRICS.values() if weights in metric.instrument.weights]
    files = ", ".join(f"`{weights.repo}/{file.path}`" for file in weights.files)
    size = "" if weights.bytes is None else f"{weights.bytes / 1e9:.2g} GB" if weights.bytes > 5e7 else "small"
    licence = f"{weights.licence}; {weights.note}" if weights.note else weights.licence
    return files, ", ".join(f"`{name}`" for name in users), size, licence, f"`{weights.command}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def module_tables(packages: Iterable[Path]) -> str:
    """Return one table a folder: each module with the first sentence of its docstring."""
    parts = []
    for package in packages:
        for folder in sorted({path.parent for path in package.rglob("*.py")}, key=lambda f: f.as_posix()):
            title = folder.relative_to(package.parent).as_posix()
            rows = [
                f"| `{path.name}` | {_cell(_module_sentence(path))} |"
                for path in sorted(folder.glob("*.py"))
                if path.name not in ("__init__.py", "__main__.py")
            ]
            table = "\n".join(["| module | what it is |", "|---|---|", *rows, ""]) if rows else ""
            parts.append(f"### {title}/\n\n{_wrapped(_module_sentence(folder / '__init__.py'))}\n\n{table}")
    return "\n".join(parts)


def _module_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return " ".join((text or "").split("\n\n")[0].split())


ARCHITECTURE = DOCS / "explanation" / "architecture.md"
METRICS_PAGE = DOCS / "reference" / "metrics.md"
LAB_RESULTS = ROOT / "lab" / "results"
PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "reference" / "cli.md": cli_page,
    DOCS / "reference" / "library.md": library_page,
    ARCHITECTURE: architecture_page,
    METRICS_PAGE: metrics_page,
    **family_pages.pages(DOCS / "reference" / "formats"),
    LAB_RESULTS / EDITIONS: lambda: editions_csv(LAB_RESULTS),
    DOCS / "lab" / "results.md": lambda: results_page(LAB_RESULTS),
    DOCS / "lab" / "first-family.md": lambda: first_family_page(LAB_RESULTS),
}


def main() -> int:
    """Write the pages, or compare them."""
    stale = [path for path, page in PAGES.items() if not path.is_file() or path.read_text(encoding="utf-8") != page()]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(
                f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path} is stale: run `make docs`",
                file=sys.stderr,
            )
        return bool(stale)
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(PAGES[path](), encoding="utf-8")
        print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
