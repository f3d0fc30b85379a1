"""The page: complete in itself, its clips in step, and its sentences follow the numbers wherever they fall."""

import html
import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from loraport.sampling.statistics import Interval
from loraport_lab.demo import ColumnResult, DemoResult, evaluate_styles
from loraport_lab.family.family import STUDENTS
from loraport_lab.family.measure import METRICS
from loraport_lab.pages.demo_page import write_page
from loraport_lab.pages.demo_terminal import print_demo
from loraport_lab.pages.hero import write_moving, write_still
from loraport_lab.pages.verdict import signed, standing, verdict
from loraport_lab.pages.whiskers import draw_chart
from tests.reports.browser import browser_says, browser_shows, foreign_addresses, needs_chromium

CLIPS, FRAMES, HEIGHT, WIDTH = 6, 5, 20, 28
LAYER = {"name": "blocks.0.attn1.to_q", "status": "transferred", "reason": None, "shape": [128, 128], "rank_in": 8}
LAYER |= {"rank_out": 16, "drift": 0.25, "lora": 0.1, "update": 0.12, "kept_energy": 0.9, "kept_correction": None}
AS_IT_IS = (18.0, 60.0)
SEEDS = {"transfer": 8, "beside": 9, "oracle": 10}
CASA, BESIDE, TRAINED = (18.0, 60.0), (18.4, 62.0), (22.0, 93.0)


def column(role: str, label: str, psnr: float, effect: float) -> ColumnResult:
    frames = torch.randint(
        0, 255, (CLIPS, FRAMES, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(SEEDS.get(role, 7))
    )
    jitter = torch.zeros(CLIPS) if role in ("reference", "direct") else torch.linspace(-0.1, 0.1, CLIPS)
    values = {"effect": effect + jitter, "shape": torch.full((CLIPS,), 80.0)}
    if role != "reference":
        values["psnr"] = psnr + jitter
    return ColumnResult(label, role, frames.to(torch.uint8), values)


def demo(casa=CASA, beside=BESIDE, trained=TRAINED, reference=95.0) -> DemoResult:
    columns = [column("reference", "base + LoRA", 0, reference), column("direct", "LoRA as it is", *AS_IT_IS)]
    given = {"transfer": ("<casa>", casa), "beside": ("undo:0.25", beside), "oracle": ("trained", trained)}
    columns += [column(role, label, *numbers) for role, (label, numbers) in given.items() if numbers is not None]
    prompts = tuple(f"red circle {i}" for i in range(CLIPS))
    return DemoResult("neon", next(iter(STUDENTS)), prompts, tuple(columns), METRICS[:4], 3, tuple(range(CLIPS)))


def test_the_chart_has_an_axis_with_numbers_that_holds_zero_and_every_interval():
    chart = draw_chart(demo(trained=(22.0, 45)))
    fidelity, effect = chart.panels
    assert [tick.label for tick in fidelity.ticks] == ["0", "+1", "+2", "+3", "+4"] and "dB" in fidelity.title
    assert [tick.label for tick in effect.ticks] == ["−15", "−10", "−5", "0"] and "points" in effect.title
    for panel, values in ((fidelity, (0, 0.4, 4.0)), (effect, (0, 2.0, -15.0))):
        first, last = panel.ticks[0], panel.ticks[-1]
        numbers = [float(tick.label.replace("−", "-")) for tick in (first, last)]
        each = (last.place - first.place) / (numbers[1] - numbers[0])
        for whisker, value in zip(panel.whiskers, values, strict=True):
            assert whisker.dot == pytest.approx(first.place + each * (value - numbers[0]), abs=0.02)
            assert 0 < whisker.left <= whisker.dot <= whisker.left + whisker.width < 100


@pytest.mark.parametrize("size", [3e-4, 0.07, 0.9, 4.04, 38.0])
def test_an_axis_has_few_numbers_and_no_two_alike(size):
    for trained in ((18 + size, 60), (18 - size, 60)):
        ticks = draw_chart(demo(casa=None, beside=None, trained=trained)).panels[0].ticks
        assert 3 <= len(ticks) <= 5 and len({tick.label for tick in ticks}) == len(ticks)
        assert sum(tick.label == "0" for tick in ticks) == 1


def test_which_clips_are_shown_is_the_choice_of_the_reference_and_is_said(tmp_path):
    made = replace(demo(), order=(5, 2, 0, 1, 3, 4))
    change = torch.tensor([1.0, 0, 0, 0, 0, 3.0])
    columns = [
        replace(one, values={**one.values, "psnr": 18 + change}) if one.role == "transfer" else one
        for one in made.columns
    ]
    write_page(replace(made, columns=tuple(columns)), tmp_path / "demo.html", layers=[], shown=2)
    text = (tmp_path / "demo.html").read_text()
    assert re.findall(r'<p class="prompt">(.*?)</p>', text) == ["red circle 5", "red circle 2"]
    said = re.search(r"2 of the 6 clips, chosen by .*?</p>", text, re.DOTALL)[0]
    assert "base + LoRA alone" in said and "changes fidelity by +1.50 dB on the mean, in all by +0.67 dB" in said


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "demo.html"
    layers = [LAYER, {**LAYER, "name": "blocks.1", "status": "skipped", "reason": "no such layer in the target"}]
    write_page(demo(), path, layers=layers, facts={"Method": "casa & more"}, shown=4)
    return path


def test_page_refers_to_nothing_outside_itself(page):
    text = page.read_text()
    assert foreign_addresses(text) == []
    assert "http" not in text and "@import" not in text and "<script src" not in text
    assert text.count("data:image/webp") == 4 * 5


def test_page_shows_every_column_prompt_layer_and_reason_and_escapes_them(page):
    text = page.read_text()
    for part in (
        "&lt;casa&gt;",
        "red circle 3",
        "blocks.0.attn1.to_q",
        "128 × 128",
        "90.0\N{NO-BREAK SPACE}%",
        "casa &amp; more",
        f"{WIDTH} × {HEIGHT} pixels",
    ):
        assert part in text
    assert "no such layer in the target" in text
    assert "red circle 4" not in text and "<casa>" not in text


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"casa": (18.5, 70)}, "<casa> helps here: +0.50 ± 0.08 dB fidelity and +10.0 ± 0.1 points of effect against"),
        ({"casa": (18.5, 60)}, "<casa> helps here: +0.50"),
        ({"casa": (17, 50)}, "<casa> does harm here: −1.00 ± 0.08 dB"),
        ({"casa": (17, 60)}, "<casa> does harm here"),
        ({"casa": (17, 70)}, "<casa> gains effect and pays with fidelity here"),
        ({"casa": (19, 50)}, "<casa> gains fidelity and pays with effect here"),
        ({"casa": (18, 60)}, "<casa> makes no sure difference here: +0.00"),
    ],
)
def test_the_first_sentence_is_the_truth_about_the_transfer(numbers, expected):
    first = verdict(demo(**numbers)).first[0]
    assert first.startswith(expected) and first.count(".") == len(re.findall(r"\d\.\d", first)) + 1, "one sentence"
    assert "± is the 95 % interval" in first


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "; undo:0.25 helps."),
        ({"beside": (17, 60)}, "; a LoRA trained on the student helps."),
        (
            {"beside": (19, 50)},
            "; undo:0.25 gains fidelity and pays with effect, while a LoRA trained on the student helps.",
        ),
        ({"beside": None, "trained": None}, "; no column here helps."),
        ({"beside": (17, 60), "trained": (17, 60)}, "; no column here helps."),
    ],
)
def test_where_the_transfer_does_not_help_the_column_that_does_is_named(numbers, expected):
    assert verdict(demo(casa=(17, 50), **numbers)).first[0].endswith(expected)
    assert expected not in verdict(demo(casa=(19, 70), **numbers)).first[0]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "A LoRA trained on the student has the highest fidelity; it helps: +4.00 ± 0.08 dB fidelity and +33.0"),
        (
            {"trained": (22, 50)},
            "A LoRA trained on the student has the highest fidelity; it gains fidelity and pays with effect: +4.00 "
            "± 0.08 dB fidelity and −10.0 ± 0.1 points of effect against the LoRA as it is.",
        ),
        ({"trained": None}, "undo:0.25 has the highest fidelity; it helps: +0.40"),
        (
            {"trained": (18.01, 50), "beside": None},
            "A LoRA trained on the student has the highest fidelity; it does harm",
        ),
        (
            {"trained": (18.01, 60), "beside": None},
            "A LoRA trained on the student has the highest fidelity; it makes no sure difference: +0.01 ± 0.08 dB",
        ),
        (
            {"trained": (19, 57), "reference": 55},
            "it helps: +1.00 ± 0.08 dB fidelity and −3.0 ± 0.1 points of effect against the LoRA as it is "
            "(effect counts up to what base + LoRA shows).",
        ),
        (
            {"casa": (17, 60), "beside": (17, 60), "trained": (17, 93)},
            "No column here has more fidelity than the LoRA as it is.",
        ),
    ],
)
def test_what_the_column_of_the_highest_fidelity_costs_is_said(numbers, expected):
    assert expected in verdict(demo(**numbers)).first[1]


def test_of_the_method_that_has_the_highest_fidelity_all_is_said_once():
    assert [sentence.split()[0] for sentence in verdict(demo(casa=(23, 50))).first] == ["<casa>", "Unchanged"]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (95, "loses effect (60 % of neon, the base 95 %; −35.0 ± 0.0 points), so there is effect to repair, and not"),
        (
            60,
            "loses no effect beyond chance (60 % of neon, the base 60 %; +0.0 ± 0.0 points), so what there is",
        ),
        (
            55,
            "shows more effect than on the base (60 % of neon, the base 55 %; +5.0 ± 0.0 points), so what there is to",
        ),
    ],
)
def test_whether_there_is_effect_to_repair_is_said(reference, expected):
    assert verdict(demo(reference=reference)).first[-1].startswith(f"Unchanged on the student the LoRA {expected}")


def test_effect_counts_up_to_what_the_base_shows():
    """A LoRA that is too strong on the student is not better for being stronger, nor worse for being put right."""
    more, less = demo(casa=(18.5, 70), reference=55), demo(casa=(18.5, 57), reference=55)
    for made in (more, less):
        reference, direct, casa = made.columns[:3]
        own = standing(made, casa, direct, reference)
        assert own.effect.sign != 0 and (own.gains, own.losses) == (["fidelity"], [])
        assert "; effect counts up to what base + LoRA shows)" in verdict(made).first[0], (
            "or +0.50 with −3.0 would look odd"
        )
    assert "pays with effect" in verdict(demo(casa=(18.5, 57), reference=59)).first[0]
    nothing = verdict(demo(casa=(18, 57), reference=55)).first[0]
    assert nothing.startswith("<casa> makes no sure difference that counts here: +0.00")
    assert "counts" not in verdict(demo(casa=(18, 60))).first[0]


def test_the_rival_and_the_headroom_are_said():
    rival, headroom = verdict(demo()).more
    assert "undo:0.25 against <casa>: +0.40" in rival
    assert "+4.00 ± 0.00 dB fidelity and +33.0 ± 0.0 points of effect against <casa>" in headroom
    assert verdict(demo(beside=None, trained=None)).more == ()


def test_of_one_clip_nothing_is_claimed():
    made = demo(casa=(30, 90))
    short = [replace(one, values={key: value[:1] for key, value in one.values.items()}) for one in made.columns]
    shown = replace(made, columns=tuple(short), prompts=made.prompts[:1])
    assert verdict(shown).first[0].startswith("<casa> makes no sure difference here: +11.90 dB")
    assert draw_chart(shown) is not None


def test_no_change_has_no_minus():
    assert (
        signed(Interval(-0.004, -0.014, 0.006), 2) == "+0.00 ± 0.01"
        and signed(Interval(-0.006, -1.0, 1.0), 2)[0] == "−"
    )


def test_clips_of_one_prompt_are_no_independent_draws():
    """Twelve clips of two prompts that disagree: sure if each counted by itself, not so by prompt."""
    made = demo(casa=(18.5, 60))
    values = {**made.columns[2].values, "psnr": torch.tensor([18.1, 18.1, 18.1, 18.9, 18.9, 18.9])}
    columns = tuple(replace(one, values=values) if one.role == "transfer" else one for one in made.columns)
    assert verdict(replace(made, columns=columns)).first[0].startswith("<casa> helps")
    prompts = ("one",) * 3 + ("two",) * 3
    assert (
        verdict(replace(made, columns=columns, prompts=prompts)).first[0].startswith("<casa> makes no sure difference")
    )


def test_the_terminal_shows_a_small_table_and_the_verdict_last(tmp_path, capsys):
    print_demo(demo(casa=(17, 50)), tmp_path / "index.html")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == verdict(demo(casa=(17, 50))).first[0]
    row = next(line for line in lines if line.startswith("<casa>"))
    assert row.split() == "<casa> 17.00 −1.00 ± 0.08 50.0 −10.0 ± 0.1".split()
    assert max(map(len, lines[:-2])) <= 80
    assert lines[-2] == f"Open {tmp_path / 'index.html'} in a browser."


def test_the_still_picture_has_a_column_each_and_a_row_a_prompt(tmp_path):
    write_still(demo(), tmp_path / "few.png", rows=2, side=28)
    write_still(demo(beside=None), tmp_path / "fewer.png", rows=3, side=28)
    few, fewer = Image.open(tmp_path / "few.png"), Image.open(tmp_path / "fewer.png")
    assert few.width - fewer.width == 2 * 28 + 4 + 24 and fewer.height - few.height == 20 + 24
    assert few.getpixel((0, 0))[3] == 0 and few.getpixel((few.width // 2, 2))[3] == 255, "round corners on any ground"


def test_the_pictures_show_the_clips_that_the_page_shows_first(tmp_path):
    made = demo()
    frames = made.columns[0].frames.clone()
    frames[4] = 255
    bright = replace(made, columns=tuple(replace(one, frames=frames) for one in made.columns))
    for name, order in (("last", range(CLIPS)), ("first", (4, 0, 1, 2, 3, 5))):
        write_still(replace(bright, order=tuple(order)), tmp_path / f"{name}.png", rows=1, side=28)
    white = [Image.open(tmp_path / f"{name}.png").convert("L").getpixel((240, 170)) for name in ("last", "first")]
    assert white[0] < 255 == white[1]


def test_the_moving_picture_has_every_frame(tmp_path):
    write_moving(demo(), tmp_path / "hero.webp", rows=1, side=28)
    with Image.open(tmp_path / "hero.webp") as hero:
        assert (hero.n_frames, hero.info["loop"]) == (FRAMES, 0)


def test_the_same_demo_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_page(demo(), tmp_path / f"{name}.html", layers=[LAYER], shown=1)
        write_still(demo(), tmp_path / f"{name}.png", rows=1, side=28)
        write_moving(demo(), tmp_path / f"{name}.webp", rows=1, side=28)
    for ending in ("html", "png", "webp"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


PROBE = """
const places = () => [...new Set([...document.querySelectorAll(".film")].filter((film) => film.offsetParent)
  .map((film) => getComputedStyle(film).backgroundPositionX))];
const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const visible = () => [...document.querySelectorAll(".row.heads > *")].filter((head) => head.offsetParent).length;
"""


def tried(page, tmp_path, steps: str, width: int = 1200):
    """What Chromium finds when it runs `steps`, the body of an async function that returns an object.

    The page is in a frame of that width: a window of Chromium's is never as narrow as a telephone.
    """
    script = (
        f"{PROBE}(async () => {{ {steps} }})().then((found) => {{ parent.postMessage(JSON.stringify(found), '*'); }});"
        "\n</script></body>"
    )
    copy, frame = page.with_name("probed.html"), page.with_name("frame.html")
    copy.write_text(page.read_text().replace("</script>\n</body>", f"</script><script>{script}"))
    frame.write_text(
        f'<!DOCTYPE html><html><title></title><body><iframe src="{copy.name}" width="{width}" height="800">'
        "</iframe><script>onmessage = (event) => { document.title = event.data; };</script></body></html>"
    )
    title = re.search(r"<title>(.*)</title>", browser_shows(frame, tmp_path / "profile"))[1]
    return json.loads(html.unescape(title))


@pytest.mark.slow
@needs_chromium
def test_all_clips_play_in_step_and_pause(page, tmp_path):
    found = tried(
        page,
        tmp_path,
        """
        const seen = [];
        for (let i = 0; i < 8; i += 1) { seen.push(places()); await sleep(90); }
        document.getElementById("play").click();
        const paused = places(); await sleep(900); const later = places();
        press("ArrowRight"); const next = places();
        press(" "); await sleep(900); const again = places();
        const before = document.getElementById("play").checked; press(" ");
        return { seen, paused, later, next, again, before, after: document.getElementById("play").checked };
        """,
    )
    assert all(len(places) == 1 for places in found["seen"]), "one frame at a time, in all clips"
    assert len({places[0] for places in found["seen"]}) >= 3, "they play"
    assert found["paused"] == found["later"] != found["next"] and len(found["next"]) == 1
    assert (found["before"], found["after"]) == (True, False)


@pytest.mark.slow
@needs_chromium
def test_columns_hide_and_two_are_swiped(page, tmp_path):
    found = tried(
        page,
        tmp_path,
        """
        const all = visible();
        document.getElementById("column-1").click(); const fewer = visible();
        const films = [...document.querySelectorAll(".film")].filter((film) => film.offsetParent).length;
        press("2"); const back = visible();
        for (let i = 0; i < 5; i += 1) document.getElementById(`column-${i}`).click();
        const last = visible();
        press("s");
        const pair = document.querySelector(".pair"), box = pair.getBoundingClientRect();
        pair.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.left + box.width / 4 }));
        const over = getComputedStyle(pair.children[1]).clipPath;
        const names = [...pair.querySelectorAll(".tag")].map((tag) => tag.textContent);
        const pairs = [...document.querySelectorAll(".pair")].filter((one) => one.offsetParent).length;
        return { all, fewer, films, back, last, over, names, pairs, heads: visible(), places: places().length };
        """,
    )
    assert (found["all"], found["fewer"], found["back"], found["films"]) == (5, 4, 5, 4 * 4)
    assert found["last"] == 1, "one column stays"
    assert found["over"].startswith("inset(0") and "25" in found["over"]
    assert (found["names"], found["pairs"], found["heads"], found["places"]) == (["LoRA as it is", "<casa>"], 4, 0, 1)


@pytest.mark.slow
@needs_chromium
def test_differences_lay_each_clip_over_that_of_the_reference(page, tmp_path):
    """Also where two are swiped; and all is as before when they are turned off."""
    found = tried(
        page,
        tmp_path,
        """
        const row = [...document.querySelector(".clip-rows > .row:not(.heads)").children];
        const addresses = (image) => image.split("url(").slice(1).map((one) => one.replace(/"?\\),? ?$/, ""));
        const state = () => row.map((film) => getComputedStyle(film))
          .map((style) => [...addresses(style.backgroundImage), style.backgroundBlendMode]);
        const said = () => document.querySelector(".differing-note").offsetParent !== null;
        const before = state(), silent = !said();
        press("d");
        const during = state(), told = said();
        press("s");
        const pair = document.querySelector(".pair").querySelectorAll(".film.compared").length;
        press("s"); press("d");
        return { before, during, pair, silent, told, after: state() };
        """,
    )
    before, during = found["before"], found["during"]
    assert len({film for film, _ in before}) == 4 and {blend for _, blend in before} == {"normal"}
    assert during[0] == before[0] == found["after"][0] and found["after"] == before
    assert during[1:] == [[film, before[0][0], "difference, normal"] for film, _ in before[1:]]
    assert (found["pair"], found["silent"], found["told"]) == (2, True, True)


@pytest.mark.slow
@needs_chromium
def test_on_a_telephone_hidden_columns_are_named_and_no_number_is_cut(page, tmp_path):
    found = tried(
        page,
        tmp_path,
        """
        const missing = document.getElementById("missing"), before = missing.textContent, few = visible();
        missing.querySelector("button").click();
        const all = visible(), told = missing.hidden;
        document.getElementById("column-0").click();
        const cells = [...document.querySelectorAll(".numbers td, .chart .value")];
        return { before, few, all, told, after: missing.textContent,
                 right: Math.max(...cells.map((cell) => cell.getBoundingClientRect().right)),
                 heights: cells.filter((cell) => cell.getBoundingClientRect().height > 0).length - cells.length,
                 wide: document.documentElement.scrollWidth };
        """,
        width=390,
    )
    assert found["before"].startswith("Not shown: undo:0.25, trained. ") and found["before"].endswith("Show all")
    assert (found["few"], found["all"], found["told"], found["heights"]) == (3, 5, True, 0)
    assert found["after"].startswith("Not shown: base + LoRA. ")
    assert found["right"] <= 390 and found["wide"] <= 390


@pytest.mark.slow
@needs_chromium
def test_without_scripts_the_clips_still_play_in_step_and_pause(page, tmp_path):
    whole = page.read_text()
    page.write_text(whole[: whole.index("<script>")] + "<script>\n</script>\n</body></html>")
    found = tried(
        page,
        tmp_path,
        """
        const demo = document.getElementById("demo"), clock = demo.getAnimations()[0], seen = [];
        for (const time of [0, 250, 600]) { clock.currentTime = time; seen.push(places()); }
        const running = clock.playState;
        document.getElementById("play").click(); await sleep(50);
        document.getElementById("column-0").click();
        const controls = [...document.querySelectorAll(".player input, .player select")];
        return { seen, running, paused: demo.getAnimations()[0].playState, heads: visible(),
                 controls: controls.filter((one) => one.offsetParent).length };
        """,
    )
    assert all(len(places) == 1 for places in found["seen"]) and len({places[0] for places in found["seen"]}) == 3
    assert (found["running"], found["paused"], found["heads"]) == ("running", "paused", 4)
    assert found["controls"] == 1 + 5, "only what works without scripts is there"


@pytest.mark.slow
@needs_chromium
def test_page_opens_in_a_browser_without_a_word(page, tmp_path):
    assert browser_says(page, tmp_path / "profile") == ""
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><html><body><script>nowhere()</script></body></html>")
    assert "nowhere" in browser_says(broken, tmp_path / "profile")


def test_what_evaluate_gives_stands_beside_the_judge(tmp_path):
    made, path = demo(), tmp_path / "demo.html"
    write_page(made, path, layers=[])
    assert "by <code>loraport evaluate" not in path.read_text()
    columns = tuple(replace(one, values=one.values | {"likeness": torch.full((CLIPS,), 90.0 + place)})
                    for place, one in enumerate(made.columns))  # fmt: skip
    styles = {one.label: torch.full((3,), 70.0 - place) for place, one in enumerate(columns) if place}
    write_page(replace(made, columns=columns, styles=styles), path, layers=[])
    text = path.read_text()
    assert "by <code>loraport evaluate" in text and "first 3 clips shown" in text
    assert "a rank correlation of −1.00" in text and "<td>69.0</td>" in text


def test_styles_are_those_that_evaluate_gives():
    columns = [column("reference", "base + LoRA", 0, 90.0), column("direct", "same", 0, 90.0)]
    noise = torch.randint(0, 255, (2, FRAMES, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(1))
    columns.append(replace(columns[1], label="other", frames=noise.to(torch.uint8) // 4))
    styles = evaluate_styles(columns, (1, 0))
    assert set(styles) == {"same", "other"} and styles["same"].tolist() == pytest.approx([100, 100], abs=1e-3)
    assert (styles["other"] < 95).all() and evaluate_styles(columns, ()) == {}
    one_right = torch.stack([columns[2].frames[0], columns[0].frames[1]])
    columns[2] = replace(columns[2], frames=one_right)
    assert evaluate_styles(columns, (1,))["other"].tolist() == pytest.approx([100], abs=1e-3)
