"""The page of a comparison in a real browser: all films on one frame, votes without names, nothing from outside."""

import json
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("av")

from loraport.clips.clip import Clip
from loraport.clips.write import write_for_viewing, write_lossless
from loraport.compare.manifest import Manifest
from loraport.reports.comparison.page import write_comparison_page
from tests.reports.browser import CHROMIUM, foreign_addresses, needs_chromium

STEP = 24
"""Of brightness, from a frame to the next: what the browser draws tells which frame it is."""
COLUMNS = [
    ("source+lora", "source", "given"),
    ("target", "target", None),
    ("direct", "target", "made"),
    ("casa", "target", "made"),
]


def column(name, model, lora):
    return {"name": name, "label": f"<{name}>", "model": model, "lora": lora, "strength": 1.0, "folder": name}


def write_comparison(folder, *, still=False, prompts=2, left_out=()):
    """A comparison whose frame n has the brightness n · STEP; casa's films are shorter, of half the rate."""
    facts = {
        "format": 1,
        "loraport": "0",
        "models": {
            "source": {"name": "a/base", "weights": "1"},
            "target": {"name": "/x/y/few", "weights": "2", "accelerators": ["/z/fast.safetensors"]},
        },
        "lora": {"name": "/some/where/</script>noir", "sha256": "3", "trigger": None},
        "columns": [column(*one) for one in COLUMNS],
        "prompts": [{"id": f"0{number}", "text": f"a <b>cat</b> {number}"} for number in range(prompts)],
        "seeds": [0],
        "sampling": {"source": {"steps": 4}, "target": {"steps": 2}, "same_noise": True},
        "versions": {"torch": "2", "av": None},
    }
    manifest = Manifest(folder, facts)
    for name, *_ in COLUMNS:
        for prompt in facts["prompts"]:
            if (name, prompt["id"]) in left_out:
                continue
            count, fps = (1, 8.0) if still else (4, 4.0) if name == "casa" else (8, 8.0)
            levels = np.arange(count, dtype=np.uint8) * STEP * (8 // max(count, 4) if not still else 1)
            frames = np.broadcast_to(levels[:, None, None, None], (count, 32, 48, 3)).copy()
            place = folder / "clips" / name
            place.mkdir(parents=True, exist_ok=True)
            measure, look = (
                f"{prompt['id']}-0{ending}" for ending in ((".png", ".jpg") if still else (".mkv", ".mp4"))
            )
            write_lossless(place / measure, Clip(frames, fps))
            write_for_viewing(place / look, Clip(frames, fps))
            manifest.add({
                "column": name, "prompt": prompt["id"], "seed": 0, "measure": f"clips/{name}/{measure}",
                "look": f"clips/{name}/{look}", "sha256": name + prompt["id"], "frames": count,
                "fps": None if still else fps, "width": 48, "height": 32,
            })  # fmt: skip
    return write_comparison_page(manifest)


WALK = """
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const $ = (id) => document.getElementById(id);
const cells = (row = 0) => [...document.querySelectorAll(".entry")[row].querySelectorAll(".cell")];
const films = () => [...document.querySelectorAll("video")];
const levels = () => films().map((film) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 4, height: 4 });
  const draw = canvas.getContext("2d");
  draw.drawImage(film, 0, 0, 4, 4);
  return draw.getImageData(1, 1, 1, 1).data[0];
});
const seen = (node) => node.offsetParent !== null && getComputedStyle(node).display !== "none";
const settled = async () => {
  for (let turn = 0; turn < 100; turn++) {
    await wait(50);
    if (films().every((film) => film.dataset.whole && film.readyState >= 2 && !film.seeking)) break;
  }
  await wait(150);
};
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
(async () => {
  const told = {};
  try {
    await settled();
    await wait(700);
    told.spread = Math.max(...films().map((f) => f.currentTime)) - Math.min(...films().map((f) => f.currentTime));
    told.moved = films().every((film) => film.currentTime > 0);
    $("frame").value = 3; $("frame").oninput(); await settled();
    told.third = levels();
    press("ArrowRight"); await settled();
    told.fourth = levels(); told.where = $("where").textContent;
    $("swipe").click();
    told.swipe = cells().filter(seen).map((cell) => cell.querySelector(".name").textContent);
    const row = document.querySelector(".row"), box = row.getBoundingClientRect();
    row.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 4, bubbles: true }));
    told.split = $("comparison").style.getPropertyValue("--split");
    $("swipe").click();
    press("2");
    told.without = cells().filter(seen).map((cell) => cell.querySelector(".name").textContent);
    $("blind").click();
    const hidden = cells().filter(seen);
    const words = (cell) => [...cell.querySelectorAll("figcaption b")].filter(seen).map((one) => one.textContent);
    told.blind = hidden.map((cell) => words(cell)[0]).sort();
    told.counted = seen($("tally-scroll"));
    hidden.find((cell) => cell.querySelector(".name").textContent === "casa").querySelector(".vote").click();
    [...document.querySelectorAll(".entry")][1].querySelector(".same").click();
    told.standing = $("standing").textContent;
    $("blind").click();
    told.tally = $("tally").innerText;
    const texts = [];
    URL.createObjectURL = (blob) => { texts.push(blob); return "blob:none"; };
    HTMLAnchorElement.prototype.click = () => {};
    $("save-csv").click(); $("save-json").click();
    told.csv = await texts[0].text(); told.json = JSON.parse(await texts[1].text());
    told.kept = Object.values(localStorage).map((text) => JSON.parse(text).votes);
    $("forget").click();
    told.forgotten = $("standing").textContent;
  } catch (error) { told.error = String(error.stack || error); }
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
})();
"""


def walk(page, tmp_path):
    """Serve the page's folder, open it in Chromium with a script that uses it, and return what the script tells."""
    told, done = {}, threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self):
            told.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_):
            pass

    walked = page.with_name("walked.html")
    walked.write_text(page.read_text().replace("</body>", f"<script>{WALK}</script></body>"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(page.parent)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    address = f"http://127.0.0.1:{server.server_address[1]}/walked.html"
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1400", "--remote-debugging-port=0"]
    browser = subprocess.Popen([CHROMIUM, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert done.wait(60), "the page's script told nothing"
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
    return told


@needs_chromium
@pytest.mark.slow
def test_the_page_in_use(tmp_path):
    told = walk(write_comparison(tmp_path / "compared"), tmp_path)
    assert "error" not in told
    assert told["moved"] and told["spread"] < 0.3
    # casa's film has half the frames: its frame 1 is on while the others show 3, its frame 2 with their 4
    own = [3, 3, 3, 1 * 2] * 2  # and its frames are twice as bright each
    assert np.allclose(told["third"], [STEP * frame for frame in own], atol=6)
    assert np.allclose(told["fourth"], [STEP * frame for frame in [4, 4, 4, 2 * 2] * 2], atol=6)
    assert told["where"] == "5 / 8"
    assert told["swipe"] == ["direct", "casa"] and told["split"] == "25.00%"
    assert told["without"] == ["source+lora", "direct", "casa"]
    assert told["blind"] == ["A", "B", "source+lora"] and not told["counted"]
    assert told["standing"].startswith("2 of 2 rows voted on, no difference in 1.") and "casa" not in told["standing"]
    assert "casa" in told["tally"] and "1 of 1" in told["tally"] and "100 [21, 100]" in told["tally"]
    assert told["csv"].splitlines()[0] == "row,best,shown_in_order"
    assert [line.split(",")[:2] for line in told["csv"].splitlines()[1:]] == [
        ["00-0", "casa"],
        ["01-0", "no difference"],
    ]
    assert [row["best"] for row in told["json"]["votes"]] == ["casa", None]
    assert all(sorted(row["order"]) == ["casa", "direct"] for row in told["json"]["votes"])
    assert told["kept"] == [{"00-0": "casa", "01-0": ""}]
    assert told["forgotten"].startswith("0 of 2 rows")


def test_the_page_names_everything_and_refers_to_its_own_files_only(tmp_path):
    page = write_comparison(tmp_path)
    text = page.read_text()
    own = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4")}
    assert set(foreign_addresses(text)) == own | {"manifest.json"}
    assert "http" not in text and "@import" not in text
    assert "a &lt;b&gt;cat&lt;/b&gt; 1" in text and "&lt;casa&gt;" in text and "</script>noir" not in text
    assert "noir: from a/base to few" in text and "fast.safetensors" in text
    assert text.count("controls preload") == 8  # without scripts each film can be played by itself
    assert "not there yet" not in text
    assert page.read_bytes() == write_comparison(tmp_path).read_bytes()


def test_a_clip_that_is_missing_has_a_place_and_a_sentence(tmp_path):
    text = write_comparison(tmp_path, left_out=[("casa", "01")]).read_text()
    assert text.count("not made yet") == 1 and "1 of them are not there yet" in text


def test_images_have_no_player(tmp_path):
    text = write_comparison(tmp_path, still=True).read_text()
    assert text.count("<img") == 8 and "<video" not in text and 'id="play"' not in text and "8 images" in text


def test_a_comparison_of_which_nothing_is_made_says_so(tmp_path):
    page = write_comparison(tmp_path, prompts=0)
    assert "There are no clips yet" in page.read_text()
