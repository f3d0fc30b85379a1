"""What words stand for, how outputs are named, and what a manifest may say."""

import json
import os
from pathlib import Path

import pytest
import torch

from loraport.batches import jobs as planning
from loraport.batches.events import EventLog
from loraport.batches.find import FoundLora, find_loras, stands_for_several
from loraport.batches.jobs import Request, plan_jobs
from loraport.batches.manifest import read_manifest
from loraport.batches.names import NameTemplate, same_place
from loraport.errors import InputError, OutputError, SettingsError
from loraport.files.presets.table import ACCELERATORS
from loraport.inputs.config import TransferConfig
from tests import tiny

FACTORS = {"blocks.0.self_attn.q": (torch.ones(24, 2), torch.ones(2, 24))}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Folders as people have them."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "loras/a/style.safetensors",
        "loras/b/style.safetensors",
        "loras/noir.safetensors",
        "more/x.safetensors",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        tiny.write_lora(Path(name), FACTORS)
    peft = Path("loras/peft-one")
    peft.mkdir()
    tiny.write_lora(peft / "adapter_model.safetensors", FACTORS)
    (peft / "adapter_config.json").write_text("{}")
    for waste in ("loras/.hidden.safetensors", "loras/._noir.safetensors", "loras/notes.txt"):
        Path(waste).write_text("")
    for folder in ("loras/a/style.safetensors.partial", "loras/moved", "loras/.git"):
        Path(folder).mkdir()
        tiny.write_lora(Path(folder) / "old.safetensors", FACTORS)
    return tmp_path


def found(*words, **named) -> list[tuple[str, str, str]]:
    return [(Path(one.place).as_posix(), one.folder, one.name) for one in find_loras(words, **named)]


def test_a_folder_is_searched_and_its_own_folders_are_kept(tree):
    assert found("loras", leave=Path("loras/moved")) == [
        ("loras/a/style.safetensors", "a", "style"),
        ("loras/b/style.safetensors", "b", "style"),
        ("loras/noir.safetensors", "", "noir"),
        ("loras/peft-one", "", "peft-one"),
    ]
    assert ("loras/moved/old.safetensors", "moved", "old") in found("loras"), "where results go elsewhere it is one"
    assert found("loras/peft-one") == [("loras/peft-one", "", "peft-one")]
    with pytest.raises(InputError, match="of the LoRAs and of the results"):
        find_loras(["loras"], leave=Path("loras"))
    Path("empty").mkdir()
    with pytest.raises(InputError, match="holds no LoRA"):
        find_loras(["empty"])


def test_globs_and_files(tree):
    assert found("loras/*/*.safetensors", leave=Path("loras/moved"))[:2] == [
        ("loras/a/style.safetensors", "a", "style"), ("loras/b/style.safetensors", "b", "style"),
    ]  # fmt: skip
    assert len(found("loras/**/style*")) == 2
    with pytest.raises(InputError, match=r"nothing\* holds no LoRA"):
        find_loras(["loras/nothing*"])
    assert found("loras/noir.safetensors", "more/x.safetensors") == [
        ("loras/noir.safetensors", "", "noir"), ("more/x.safetensors", "", "x"),
    ]  # fmt: skip
    alike = found("loras/a/style.safetensors", "more/x.safetensors", "loras/b/style.safetensors")
    assert [folder for _, folder, _ in alike] == ["a", "", "b"], "told apart by their folders, and only these"
    assert len(found("loras", "loras/noir.safetensors", "./loras/a")) == 5, "each once"
    assert found("one/lora:style.safetensors", "two/lora:style.safetensors")[0] == (
        "one/lora:style.safetensors", "one", "style",
    )  # fmt: skip
    Path("brackets[1].safetensors").write_text("")
    assert not stands_for_several("brackets[1].safetensors") and stands_for_several("brackets[2].safetensors")


def test_links_in_a_circle_end(tree):
    Path("loras/a/around").symlink_to(tree / "loras", target_is_directory=True)
    assert len(found("loras/a")) < 10


LORA = FoundLora("x/style.safetensors", "style", "x/deep")


@pytest.mark.parametrize(
    ("template", "place"),
    {
        "{folder}/{name}-{method}": "out/x/deep/style-direct-1.15",
        "{name}": "out/style",
        "{method}/{name}.safetensors": "out/direct-1.15/style.safetensors",
        "{name}-{source}-{target}": "out/style-wan-source+fast.safetensors-0.8",
        "plain {{braces}}": "out/plain {braces}",
    }.items(),
)
def test_templates(template, place):
    made = NameTemplate(template).place("out", LORA, "direct:1.15", "models/wan/", "source+a/fast.safetensors*0.8")
    assert Path(made).as_posix() == place


@pytest.mark.parametrize(
    ("template", "message"),
    {
        "{nmae}": "unknown field of a template 'nmae'",
        "{name!r}": "write {name} alone",
        "{name:>9}": "write {name} alone",
        "{name.__class__}": "unknown field",
        "{0}": "unknown field",
        "{name": "cannot be read",
        " ": "is empty",
        "../{name}": "outside the folder of the results",
        "/tmp/{name}": "outside the folder of the results",
        "C:{name}": "outside the folder of the results",
        "{folder}/..": "outside the folder of the results",
    }.items(),
)
def test_templates_that_are_none(template, message):
    with pytest.raises(SettingsError, match=message):
        NameTemplate(template).place("out", LORA, "casa", "wan", "fast")


def test_nothing_from_a_hub_id_leads_out_of_the_folder():
    evil = FoundLora("x", "style", "../../etc")
    with pytest.raises(SettingsError, match="outside the folder"):
        NameTemplate().place("out", evil, "casa", "wan", "fast")


def test_places_that_some_system_takes_for_one():
    assert same_place("out/Style.safetensors") == same_place("out/style.SAFETENSORS")
    assert same_place("out/u\u0308ber") == same_place("out/\u00fcber") != same_place("out/uber")


@pytest.fixture
def request_(tree):
    template = TransferConfig("", "wan.safetensors", "fast.safetensors", "out")
    return Request(template, ("casa",))


def manifest(*rows, name="jobs.jsonl") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return name


def test_a_manifest_says_what_differs_from_the_options(tree, request_):
    word = manifest(
        {"lora": "../loras/noir.safetensors"},
        "",
        {"lora": "..\\more\\x.safetensors", "source": "here.safetensors", "target": "source+here.safetensors*0.5",
         "method": ["undo:0.5", "casa"], "settings": {"tau": 0.5}, "rank": 8, "output": "{method}/{name}"},
        {"lora": "../loras/a", "target": "wan2.1-t2v-1.3b", "format": "kohya", "dtype": "fp32", "exclude": "ffn"},
        name="lists/jobs.jsonl",
    )  # fmt: skip
    Path("lists/here.safetensors").write_text("")
    made = plan_jobs([word], request_)
    assert not made.refused
    one, two, three, four = made.jobs
    assert (one.lora, one.source, one.target, one.method, one.output) == (
        "lists/../loras/noir.safetensors", "wan.safetensors", "fast.safetensors", "casa", "out/noir-casa.safetensors",
    )  # fmt: skip
    assert (two.lora, two.source) == ("lists/../more/x.safetensors", "lists/here.safetensors")
    assert two.target == "source+lists/here.safetensors*0.5" and str(two.rank) == "8"
    assert (two.method, two.output, three.output) == (
        "undo:0.5",
        "out/undo-0.5/x.safetensors",
        "out/casa/x.safetensors",
    )
    assert three.settings.tau == 0.5
    assert (four.target, four.format, four.dtype, four.exclude) == ("wan2.1-t2v-1.3b", "kohya", "fp32", ("ffn",))
    assert len(made.passes) == 3


WRONG = {
    "no JSON": ("{", "is no JSON"),
    "no object": ("[1]", "is no object"),
    "deep": ("[" * 100_000, "is no JSON"),
    "unknown key": ({"lora": "x", "sauce": "y"}, "unknown key 'sauce'"),
    "no LoRA": ({"source": "x"}, "names no LoRA"),
    "a number for a name": ({"lora": "x", "source": 3}, "source is 3, but it must be a text"),
    "unknown setting": ({"lora": "loras/noir.safetensors", "settings": {"taU": 1}}, "unknown setting 'taU'"),
    "a setting of another method": (
        {"lora": "loras/noir.safetensors", "settings": {"phi_min": 0.1}}, "means nothing to 'casa'",
    ),
    "a setting of another type": (
        {"lora": "loras/noir.safetensors", "settings": {"tau": "much"}}, "tau is 'much', but it must be a number",
    ),
    "unknown method": ({"lora": "loras/noir.safetensors", "method": "cassa"}, "unknown method 'cassa'"),
    "empty method": ({"lora": "loras/noir.safetensors", "method": []}, "must be a text or a list"),
    "unknown format": ({"lora": "loras/noir.safetensors", "format": "coomfy"}, "unknown format 'coomfy'"),
    "bad seed": ({"lora": "loras/noir.safetensors", "seed": True}, "must be a whole number"),
    "out of the folder": ({"lora": "loras/noir.safetensors", "output": "../{name}"}, "outside the folder"),
    "nothing there": ({"lora": "nothing/*.safetensors"}, "holds no LoRA"),
}  # fmt: skip


def test_all_that_is_wrong_in_a_manifest_is_told_with_its_line(tree, request_):
    word = manifest(*(row for row, _ in WRONG.values()), {"lora": "loras/noir.safetensors"})
    made = plan_jobs([word], request_)
    assert len(made.jobs) == 1, "the others are done"
    told = {one.reason for one in made.refused}
    assert len(told) == len(WRONG)
    for number, (row, message) in enumerate(WRONG.values(), 1):
        assert any(f"{word}:{number}" in one and message in one for one in told), row


@pytest.mark.parametrize(("content", "message"), [(b"\n\n", "has no line"), (b"\xff\xfe\x00", "no text in UTF-8")])
def test_a_manifest_that_is_none(tree, content, message):
    Path("none.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest("none.jsonl")
    with pytest.raises(InputError, match=r"gone\.jsonl cannot be read"):
        read_manifest("gone.jsonl")


def test_two_jobs_for_one_place_are_told_apart_or_refused(tree, request_):
    row = {"lora": "loras/noir.safetensors", "output": "same"}
    made = plan_jobs([manifest(row, row, {**row, "method": "direct"}, {**row, "output": "SAME", "rank": 3})], request_)
    assert len(made.jobs) == 1, "the same job twice is one"
    assert [one.method for one in made.refused] == ["direct", "casa"]
    assert all("would be written to out/same.safetensors, too" in one.reason for one in made.refused)


def test_models_that_nobody_names(tree, request_):
    nameless = Request(TransferConfig("", "", "", "out"), ("casa",))
    with pytest.raises(SettingsError, match="nothing says the source; give --source MODEL"):
        plan_jobs(["loras/noir.safetensors"], nameless)
    made = plan_jobs([manifest({"lora": "loras/noir.safetensors", "source": "a", "target": "b"})], nameless)
    assert [(one.source, one.target) for one in made.jobs] == [("a", "b")]


def test_events_go_only_where_events_are(tree):
    with pytest.raises(OutputError, match="holds no events"):
        EventLog("loras/noir.safetensors")
    with pytest.raises(OutputError, match="is an input of this run"):
        EventLog("loras/noir.safetensors", ["loras/noir.safetensors"])
    with pytest.raises(OutputError, match="takes no events"):
        EventLog("nowhere/events.jsonl")
    for _ in range(2):
        log = EventLog("events.jsonl")
        log.tell("planned", jobs=1, share=float("inf"), name="\udcff")
        log.close()
    assert [json.loads(line)["event"] for line in Path("events.jsonl").read_text().splitlines()] == ["planned"] * 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_events_that_find_no_room_are_said_once_and_the_work_goes_on():
    log = EventLog("/dev/full")
    log.tell("planned")
    assert "no more events are written: No space left" in log.failure
    log.tell("ended")
    log.close()


def test_planning_needs_no_model(tree, request_, monkeypatch):
    monkeypatch.setattr(planning, "find_loras", lambda words, **_: tuple(FoundLora(word, word) for word in words))
    assert len(plan_jobs(["a", "b"], request_).jobs) == 2


def test_a_manifest_names_accelerators_by_their_kind(tree, request_):
    """Which file that is depends on the row's own source."""
    models = ("wan2.1-t2v-14b", "wan2.2-ti2v-5b")
    rows = [{"lora": "../loras/noir.safetensors", "source": model, "target": "source+longlive-plug", "output": model}
            for model in models]  # fmt: skip
    made = plan_jobs([manifest(*rows, name="lists/jobs.jsonl")], request_)
    assert not made.refused
    for one, model in zip(made.jobs, models, strict=True):
        files = [f"{place}*{strength:g}" for place, strength in ACCELERATORS[f"longlive-plug-{model}"].files]
        assert one.target == "+".join(["source", *files])
