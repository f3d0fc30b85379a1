"""Option dataclasses: a command takes one as a parameter, and its fields become options of the command.

    @dataclass(frozen=True)
    class RunOptions:
        heading: ClassVar[str] = "Machine"
        device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"

    @app.command()
    @with_options
    def transfer(loras: Loras, run: RunOptions) -> None: ...

A field may be an option dataclass itself. `Annotated[SomeOptions, HIDDEN]` keeps its options out of `--help`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, wraps
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from loraport.methods.settings import CASA_PRESETS, KINDS, AnySettings, CasaSettings, FlaggedSetting, flagged_settings

HIDDEN: Final = "hidden"
_METAVARS: dict[type, str] = {float: "NUMBER", int: "INT", str: "TEXT"}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each field of its option dataclasses, in that parameter's place."""
    signature = inspect.signature(command, eval_str=True)
    groups = {name: _group(parameter.annotation) for name, parameter in signature.parameters.items()}

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: group.value(given) if group else given[name] for name, group in groups.items()})

    shown: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        group = groups[name]
        shown += group.parameters() if group else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    # typer reads the options of a command from its signature and annotations
    run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


@dataclass(frozen=True)
class SettingFlags:
    """Marks a field that gets the methods' settings that were typed, by name: an option for each of them."""

    kinds: Sequence[type[AnySettings]] | None = None
    """Of these classes of settings; None takes those of all methods."""
    without: tuple[str, ...] = ()
    """Settings that get no option here."""

    def parameters(self) -> list[inspect.Parameter]:
        """Return a parameter for each setting, None where it is not typed."""
        return [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None,
                annotation=Annotated[row.type | None, _option(row, group)],
            )
            for name, (row, group) in self._rows().items()
        ]  # fmt: skip

    def value(self, given: Mapping[str, Any]) -> dict[str, float | int | bool | str]:
        """Return the settings that were typed."""
        return {name: given[name] for name in self._rows() if given[name] is not None}

    def _rows(self) -> dict[str, tuple[FlaggedSetting, str]]:
        rows: dict[str, tuple[FlaggedSetting, str]] = {}
        for kind in KINDS if self.kinds is None else self.kinds:
            for row in flagged_settings(kind):
                if row.name not in self.without:
                    rows.setdefault(row.name, (row, kind.group))
        return rows


def _option(row: FlaggedSetting, group: str) -> Any:
    name = row.option.removeprefix("--")
    spelled = f"--{name}/--no-{name}" if row.type is bool else row.option
    return typer.Option(
        spelled,
        metavar=_METAVARS.get(row.type),
        help=row.flag.help,
        show_default=default_of(row),
        rich_help_panel=group,
    )


def default_of(row: FlaggedSetting) -> str:
    """Return a setting's default as `--help` shows it, with the presets that have another one."""
    texts = [_text(row, row.default)]
    for name, preset in CASA_PRESETS.items():
        own = getattr(preset.settings, row.name, row.default)
        if row.name in {field.name for field in fields(CasaSettings)} and own != row.default:
            texts.append(f"{name}: {_text(row, own)}")
    return ", ".join(texts)


def _text(row: FlaggedSetting, value: float | bool | str) -> str:
    if isinstance(value, bool):
        return row.option if value else f"--no-{row.option.removeprefix('--')}"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Expanded:
    """An option dataclass with the options that its fields become."""

    kind: type
    hidden: bool

    def parameters(self) -> list[inspect.Parameter]:
        """Return the parameters that its fields become."""
        found: list[inspect.Parameter] = []
        for field, annotation in self._fields():
            if group := _group(annotation, self.hidden):
                found += group.parameters()
                continue
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind, annotation = inspect.Parameter.KEYWORD_ONLY, self._shown(annotation)
            found.append(inspect.Parameter(field.name, kind, default=default, annotation=annotation))
        return found

    def value(self, given: Mapping[str, Any]) -> Any:
        """Return the dataclass made of what was typed."""
        values = {}
        for field, annotation in self._fields():
            group = _group(annotation)
            values[field.name] = group.value(given) if group else given[field.name]
        return self.kind(**values)

    def _fields(self) -> list[tuple[Any, Any]]:
        return _fields_of(self.kind)

    def _shown(self, annotation: Any) -> Any:
        """Return the annotation with the heading of its dataclass, and hidden where that is."""
        plain, *notes = get_args(annotation)
        option = copy(next(note for note in notes if isinstance(note, ParameterInfo)))
        option.hidden = option.hidden or self.hidden
        option.rich_help_panel = option.rich_help_panel or getattr(self.kind, "heading", None)
        return Annotated[plain, option]


@cache  # most commands share the same few dataclasses, and their annotations are texts that have to be compiled
def _fields_of(kind: Any) -> list[tuple[Any, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(field, hints[field.name]) for field in fields(kind)]


def _group(annotation: Any, hidden: bool = False) -> _Expanded | SettingFlags | None:
    """Return what a parameter is expanded to; None for one that stays an option of its own."""
    plain, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    for note in notes:
        if isinstance(note, SettingFlags):
            return note
    if isinstance(plain, type) and is_dataclass(plain):
        return _Expanded(plain, hidden or HIDDEN in notes)
    return None
