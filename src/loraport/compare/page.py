"""The page of a comparison: its clips side by side, in a folder that opens offline."""

from __future__ import annotations

from html import escape

from loraport.compare.manifest import Manifest
from loraport.files.disk.atomic import write_whole

PAGE = "index.html"
_STYLE = """body{font:16px/1.4 system-ui,sans-serif;margin:1rem;color:#1b1b1b;background:#fff}
.row{display:flex;gap:.75rem;overflow-x:auto;padding-bottom:.5rem}figure{margin:0;flex:0 0 auto;width:min(20rem,80vw)}
video,img{width:100%;image-rendering:auto;background:#eee}figcaption{font-size:.85rem}
h2{font-size:1rem;margin:1rem 0 .25rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}}"""


def write_page(manifest: Manifest) -> None:
    """Write `index.html` beside the manifest: a row for every prompt and seed, a clip for every column."""
    facts = manifest.facts
    body = [f"<h1>{escape(str(facts['lora']['name']))}</h1>"]
    for prompt in facts["prompts"]:
        for seed in facts["seeds"]:
            cells = [_cell(manifest, column, prompt["id"], seed) for column in facts["columns"]]
            if any(cells):
                body.append(f"<h2>{escape(prompt['text'])} · seed {seed}</h2><div class=row>{''.join(cells)}</div>")
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Comparison</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    write_whole(manifest.folder / PAGE, page.encode())


def _cell(manifest: Manifest, column: dict[str, str], prompt: str, seed: int) -> str:
    row = manifest.clips.get((column["name"], prompt, seed))
    if row is None:
        return ""
    look = escape(row["look"], quote=True)
    size = f"width={row['width']} height={row['height']}"
    picture = (
        f'<img src="{look}" alt="" {size} loading=lazy>'
        if row["fps"] is None
        else f'<video src="{look}" {size} muted loop autoplay playsinline controls></video>'
    )
    return f"<figure>{picture}<figcaption>{escape(column['name'])}: {escape(column['label'])}</figcaption></figure>"
