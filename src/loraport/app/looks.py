"""How the page looks: its theme, its style sheet, and the small pieces of HTML that show how a job goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from loraport.app.jobs import View

_PERCENT = re.compile(r"(?<=\d) ?%")
WORDS = {"waiting": "Waiting", "running": "Working", "done": "Done", "refused": "Not done", "stopped": "Stopped"}
STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.7rem; margin: .2rem 0 .3rem; letter-spacing: -.01em; }
#title p { color: var(--body-text-color-subdued); margin: 0; max-width: 46rem; }
.step h2 { font-size: 1rem; margin: .5rem 0 -.3rem; }
.hint, .hint p { color: var(--body-text-color-subdued); font-size: .85rem; line-height: 1.45; margin: 0; }
#upload .icon-wrap { display: none; }
#state, #page { padding: 0; overflow: visible; }
#state > div, #page > div { padding: 0 !important; }
#buttons { flex-wrap: nowrap; gap: .6rem; }
#buttons button { min-width: 0 !important; padding-left: .3rem; padding-right: .3rem; font-size: 1rem; }
.told { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .8rem 1rem;
  background: var(--block-background-fill); overflow-wrap: anywhere; }
.told b.state { display: inline-block; margin-right: .55rem; padding: .06rem .6rem; border-radius: 999px;
  font-size: .8rem; font-weight: 600; background: var(--neutral-200); color: var(--neutral-800); }
.told.running b.state, .told.waiting b.state { background: #dbe7ff; color: #1e3a8a; }
.told.done b.state { background: #d5f2df; color: #14532d; }
.told.refused b.state { background: #ffe0dc; color: #7f1d1d; }
.told .bar { height: 7px; border-radius: 4px; margin-top: .65rem; background: var(--border-color-primary);
  overflow: hidden; }
.told .bar i { display: block; height: 100%; border-radius: 4px; background: #3b6fd9; transition: width .25s; }
.told .bar.unknown i { width: 30%; animation: sweep 1.6s ease-in-out infinite alternate; }
.told .left { float: right; color: var(--body-text-color-subdued); font-size: .85rem; margin-left: .8rem; }
@keyframes sweep { from { margin-left: 0 } to { margin-left: 70% } }
@media (prefers-reduced-motion: reduce) { .told .bar.unknown i { animation: none; width: 100%; opacity: .4 } }
.told table.facts { border: 0 !important; border-collapse: collapse; width: 100%; font-size: .9rem;
  margin: .7rem 0 0 !important; }
.told table.facts th, .told table.facts td { border: 0 !important; text-align: left; vertical-align: top;
  padding: .2rem 0 !important; overflow-wrap: anywhere; background: none !important; }
.told table.facts tr { background: none !important; border: 0 !important; }
.told table.facts th { color: var(--body-text-color-subdued); font-weight: 500 !important;
  padding-right: .9rem !important; white-space: nowrap; width: 1%; }
iframe.page { width: 100%; height: min(78vh, 900px); border: 1px solid var(--border-color-primary);
  border-radius: 10px; background: var(--block-background-fill); display: block; }
.pagelink { font-size: .85rem; margin: .4rem 0 0; }
footer .divider { display: none; }
@media (max-width: 640px) { .gradio-container { padding: .6rem !important } iframe.page { height: 75vh }
  #buttons { gap: .4rem } #buttons button { font-size: .88rem } }
"""
EMPTY_PAGE = '<div class="hint">The report appears here: what was done to which layer, and what it means.</div>'
EMPTY_STATE = (
    '<div class="told"><b class="state">Ready</b>Choose a LoRA and its two models. Diagnose first: it reads weights '
    "only, and says which method they speak for.</div>"
)


def theme() -> gr.themes.Base:
    """Return the colours, and the fonts that every machine has: none is fetched."""
    return gr.themes.Soft(
        primary_hue="blue", neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        block_title_background_fill="none", block_title_background_fill_dark="none", block_title_padding="0",
        block_title_text_color="*body_text_color", block_title_text_color_dark="*body_text_color",
        block_label_background_fill="none", block_label_background_fill_dark="none", block_label_shadow="none",
        block_label_text_color="*body_text_color", block_label_text_color_dark="*body_text_color",
        body_text_color_subdued="*neutral_500",
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950", block_border_width="1px",
        block_border_color="*neutral_200", block_border_color_dark="*neutral_700", block_shadow="none",
    )  # fmt: skip


def state_html(view: View) -> str:
    """Return where a job stands: its state, a sentence, how much is done."""
    left = "" if view.seconds_left is None else f'<span class="left">{_duration(view.seconds_left)} left</span>'
    bar = ""
    if view.state == "running":
        known = view.share is not None
        width = f' style="width:{100 * (view.share or 0):.1f}%"' if known else ""
        bar = f'<div class="bar{"" if known else " unknown"}"><i{width}></i></div>'
    facts = "" if view.result is None else _facts_html(view.result.facts)
    return (
        f'<div class="told {view.state}" role="status">{left}<b class="state">{WORDS[view.state]}</b>'
        f"{escape(view.sentence)}{bar}{facts}</div>"
    )


def page_html(address: str, title: str) -> str:
    """Return a frame that shows one of the program's own pages; it can run its scripts, and reach nothing else."""
    place = escape(address, quote=True)
    return (
        f'<iframe class="page" src="{place}" title="{escape(title, quote=True)}" '
        'sandbox="allow-scripts allow-downloads"></iframe>'
        f'<p class="pagelink"><a href="{place}" target="_blank">Open it in a tab of its own</a></p>'
    )


def _facts_html(facts: Mapping[str, Any]) -> str:
    """Return what matters most of what a command said, as a table."""
    rows = _diagnosis_rows(facts) if "verdict" in facts else _transfer_rows(facts) if "method" in facts else {}
    rows |= {f"note {number}": text for number, text in enumerate(facts.get("notes") or facts.get("warnings") or (), 1)}
    spaced = {name: _PERCENT.sub("\N{NO-BREAK SPACE}%", text) for name, text in rows.items()}
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in spaced.items())
    return f'<table class="facts">{"".join(lines)}</table>' if rows else ""


def _diagnosis_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    rows = {"verdict": f"{facts['verdict']}, {facts['sure']:.0%} sure"}
    if facts["method"] and facts["method"] != facts["verdict"]:
        rows["without samples"] = facts["method"]
    if facts["drift"] is not None:
        rows["drift"] = f"{facts['drift']:.1%} of the weights"
        rows["LoRA"] = f"{facts['lora']:.1%} of the weights"
    if facts["keys"]["in"]:
        rows["fits"] = f"{facts['keys']['matched']} of the LoRA's {facts['keys']['in']} keys"
    if facts["relation"]:
        rows["pair"] = facts["relation"]
    if facts["estimate"]:
        rows["a transfer"] = f"takes about {_duration(facts['estimate']['seconds'])}"
    return rows


def _transfer_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    keys = facts["keys"]
    rows = {"keys": f"{keys['in']} in the LoRA, {keys['transferred']} transferred, {keys['copied']} copied"}
    if keys["dropped"]:
        key, why = keys["dropped"][0]
        rows["lost"] = f"{len(keys['dropped'])} keys, {key} for one: {why}"
    if facts["kept_correction"] is not None:
        rows["kept"] = f"{facts['kept_correction']:.0%} of what the method changed, at this rank"
    if facts["advice"]:
        rows["why"] = facts["advice"]["why"]
    rows["memory"] = f"{facts['peak_rss_bytes'] / 1e9:.2f} GB at most, on {facts['device']}"
    return rows


def _duration(seconds: float) -> str:
    """Return `1:02:03`, `2:03`, or `4 s`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"
