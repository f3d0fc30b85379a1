"""Write the card of a moved LoRA: what the Hub's page reads (YAML), then what people read."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from loraport.errors import InputError
from loraport.files.adapters.peft_fields import WEIGHTS_NAME
from loraport.files.loaders.how_to_load import ToLoad, how_to_load
from loraport.plain_json import json_text
from loraport.publishing.measured import DIRECT, Gallery, Numbers
from loraport.publishing.moved_lora import MovedLora

MARK = "<!-- card written by loraport; delete this line, and loraport never replaces the card again -->"
_LICENCES = frozenset(
    "apache-2.0 mit openrail creativeml-openrail-m openrail++ bigscience-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd "
    "bsd-2-clause bsd-3-clause bsd-3-clause-clear cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 epl-1.0 epl-2.0 gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 "
    "unlicense wtfpl zlib isc other".split()
)
"""The Hub's own names; any other licence is `other` there, with its name beside it."""
_PIPELINES = {
    **dict.fromkeys(("wan", "hunyuanvideo-1.5", "hunyuanvideo", "ltx-2"), "text-to-video"),
    **dict.fromkeys(
        ("sdxl", "sd1.5", "flux.1", "flux.2", "krea2", "qwen-image", "qwen-image-2.1", "z-image"), "text-to-image"
    ),
}


def is_ours(card: str) -> bool:
    """Return whether a card has our line in it."""
    return MARK in card.splitlines()


def card_text(
    lora: MovedLora, repo: str | None, gallery: Gallery | None, numbers: Numbers | None, report: str | None
) -> str:
    """Return the card, YAML and Markdown. Raises InputError where huggingface_hub is not installed."""
    sections = [
        MARK,
        f"# {_plain(lora.path.stem)}",
        _moved(lora),
        _loading(lora, repo),
        _measured(gallery, numbers),
        _clips(gallery),
        _making(lora, report),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{_front_matter(lora, gallery)}\n---\n\n{body}\n"


def _front_matter(lora: MovedLora, gallery: Gallery | None) -> str:
    try:
        from huggingface_hub import ModelCardData
    except ImportError as error:
        raise InputError("a card needs huggingface_hub; install it with: pip install 'loraport[hub]'") from error
    key = re.sub(r"\s+", "-", lora.licence.lower())
    known = key in _LICENCES
    fields: dict[str, Any] = {"license": key if known else "other"}
    if not known:
        fields["license_name"] = re.sub(r"[^a-z0-9.+-]+", "-", key).strip("-") or "other"
    if lora.base_models:
        fields |= {"base_model": lora.base_models, "base_model_relation": "adapter"}
    if lora.family in _PIPELINES:
        images = "i2v" in (lora.target or lora.step.get("target", "")).lower()
        fields["pipeline_tag"] = "image-to-video" if images else _PIPELINES[lora.family]
    if lora.triggers:
        fields["instance_prompt"] = ", ".join(lora.triggers)
    if gallery is not None:
        shown = [(text, cells[gallery.own]) for text, cells in gallery.prompts]
        fields["widget"] = [{"text": text, "output": {"url": name}} for text, name in shown]
    tags = ["lora", "template:sd-lora", "loraport", *([lora.family] if lora.family else [])]
    return str(ModelCardData(library_name="diffusers", tags=tags, **fields).to_yaml()).rstrip("\n")


def _moved(lora: MovedLora) -> str:
    step = lora.step
    source, target = lora.source or step.get("source", "?"), lora.target or step.get("target", "?")
    beside = " and ".join(
        f"{_linked(name, hub)} at strength {strength:g}"
        for (name, strength), hub in zip(lora.beside, lora.hub_ids, strict=True)
    )
    target_words = _code(target) + (f" with {beside} beside it" if beside else "")
    lines = [
        f"The LoRA {_code(step.get('lora', '?'))} was trained on {_code(source)}. It was moved to {target_words} by "
        f"linear algebra on the weights, without data and without training, with the method "
        f"{_code(step.get('method', '?'))} of loraport {_code(lora.made.get('version', '?'))}."
    ]
    if lora.hint:
        lines.append(f"Load it {_plain(lora.hint)}.")
    if lora.triggers:
        lines.append(f"Trigger words: {', '.join(_code(word) for word in lora.triggers)}.")
    if len(lora.steps) > 1:
        lines.append(f"It was moved {len(lora.steps)} times; `loraport.json` has every step, and each loses something.")
    words = f"Licence: {_code(lora.licence)}, that of the LoRA; those of the models hold besides."
    if lora.header_licence and lora.header_licence != lora.licence:
        words += f" The file's header says {_code(lora.header_licence)}."
    return "\n\n".join([*lines, words])


def _linked(name: str, hub: str | None) -> str:
    """Return an accelerator's name, with a link to its page where it is known to be on the Hub."""
    if hub is None:
        return _code(name)
    repo = hub.partition(":")[0].partition("@")[0]
    return f"{_code(name)} of [{repo}](https://huggingface.co/{repo})"


def _loading(lora: MovedLora, repo: str | None) -> str:
    rows, silent = [], []
    for loader in lora.loaders:
        if loader.takes == "no":
            continue
        way = how_to_load(loader.loader, ToLoad(_place(lora, repo, loader.loader), lora.family or "", lora.beside))
        losses = f" Only in part: {_plain('; '.join(loader.reasons))}." if loader.takes == "partly" else ""
        if way is None and not losses:
            silent.append(loader.loader)
        else:
            rows.append(f"- **{loader.loader}**: {_code(way) if way else 'it takes this file.'}{losses}")
    if silent:
        rows.append(f"- {', '.join(silent)}: they take this file as it is.")
    others = [loader.loader for loader in lora.loaders if loader.takes == "no"]
    if others:
        rows.append(f"- Not in this spelling: {', '.join(others)}; `loraport convert` writes another.")
    return "\n".join(["## How to load it\n", *rows]) if rows else ""


def _place(lora: MovedLora, repo: str | None, loader: str) -> str:
    """Return where a program finds the file: in the repository, where it can fetch from there."""
    if lora.path.is_dir() and loader == "PEFT":
        return repo or lora.path.name
    name = WEIGHTS_NAME if lora.path.is_dir() else lora.path.name
    return f"{repo}/{name}" if repo is not None and loader == "diffusers" else name


def _measured(gallery: Gallery | None, numbers: Numbers | None) -> str:
    if numbers is None or gallery is None:
        return "## What was measured\n\nNothing: whether this is better than the LoRA as it was is not known."
    lines = ["## What was measured", "", "| |" + "".join(f" {_plain(metric)} |" for metric in numbers.metrics)]
    lines.append("|---|" + "---:|" * len(numbers.metrics))
    for name, label in numbers.columns:
        title = f"**{_plain(label)}** (this file)" if name == gallery.own else _plain(label)
        cells = (numbers.means.get((metric, name)) for metric in numbers.metrics)
        lines.append(f"| {title} |" + "".join(f" {_with_interval(*cell) if cell else '–'} |" for cell in cells))
    lines += ["", "Means with their 95 % intervals; clips of one prompt count as one draw."]
    if DIRECT not in [name for name, _ in numbers.columns]:
        lines.append("Direct reuse, the LoRA as it was on the target, was not measured.")
    if numbers.baseline is not None and numbers.differences:
        lines += ["", f"This file against {_code(numbers.baseline)}:", ""]
        for metric, (*interval, verdict) in numbers.differences.items():
            lines.append(f"- {_plain(metric)}: {_with_interval(*interval)}{f', {_plain(verdict)}' if verdict else ''}")
    return "\n".join(lines)


def _clips(gallery: Gallery | None) -> str:
    if gallery is None:
        return ""
    lines = ["## Clips", "", "The first seed of each prompt; none was picked by hand.", ""]
    lines.append("| prompt |" + "".join(f" {_plain(label)} |" for label in gallery.labels.values()))
    lines.append("|---|" + "---|" * len(gallery.labels))
    for text, cells in gallery.prompts:
        shown = (_element(cells[name]) if name in cells else "–" for name in gallery.labels)
        lines.append(f"| {_plain(text)} |" + "".join(f" {one} |" for one in shown))
    return "\n".join(lines)


def _element(name: str) -> str:
    if name.endswith((".mp4", ".webm")):
        return f'<video src="{name}" controls muted loop width="256"></video>'
    return f'<img src="{name}" width="256" alt="">'


def _making(lora: MovedLora, report: str | None) -> str:
    try:
        settings = json_text(json.loads(lora.step.get("settings", "{}")), indent=1, sort_keys=True)
    except (ValueError, RecursionError):
        settings = "{}"
    kept = [("this file", lora.sha256)]
    names = (("the LoRA", "lora_sha256"), ("source weights", "source_hash"), ("target weights", "target_hash"))
    kept += [(title, lora.made[name]) for title, name in names if name in lora.made]
    hashes = "\n".join(f"| {title} | {_code(value)} |" for title, value in kept)
    page = f" The report on every layer: [{report}]({report})." if report else ""
    return (
        f"## How it was made\n\nSettings:\n\n```json\n{settings.replace('`', '')}\n```\n\n| | hash |\n|---|---|\n"
        f"{hashes}\n\nAll of this for programs: [loraport.json](loraport.json).{page}"
    )


def _with_interval(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "–"
    ends = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3g}{ends}"


def _plain(text: str) -> str:
    """Return a text of somebody else's as one line in which nothing is Markdown, HTML or the end of a cell."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;")


def _code(text: str) -> str:
    """Return a text as code; a backtick in it, which would end it, is left out."""
    return f"`{' '.join(text.replace('`', '').split())}`"
