"""The comparison itself: what must be noticed is, and what must not count does not."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from tests.frozen.__main__ import main, report
from tests.frozen.cases import SPOKEN, all_cases, chosen
from tests.frozen.comparison import differences, word_differences
from tests.frozen.recording import described, files_of, page, run, without_places

OUT = {"json": '{"rank": 4}', "code": 0, "files": {"out.safetensors": {"sha256": "1f"}}}


def changed(**changes):
    return {"a": {**copy.deepcopy(OUT), **changes}}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (changed(code=3), "exit 0 was, 3 is"),
        (changed(json='{"rank": 5}'), '+{"rank": 5}'),
        (changed(files={"out.safetensors": {"sha256": "2f"}}), "out.safetensors: other bytes"),
        (changed(files={}), "file out.safetensors is missing"),
        (changed(files={**OUT["files"], "more": {"sha256": "3f"}}), "file more is new"),
        ({}, "case a is missing"),
        (changed() | {"b": OUT}, "case b is new"),
    ],
)
def test_a_difference_is_said_and_fails(now, said, capsys):
    (found,) = differences(changed(), now)
    assert said in found
    record = {name: {"cases": cases, "words": {}} for name, cases in (("before", changed()), ("now", now))}
    assert report(record["before"], record["now"], (None, None), words=False) == 1
    assert said in capsys.readouterr().out


def test_nothing_differs_from_itself(capsys):
    assert differences(changed(), changed()) == []
    assert report({"cases": changed(), "words": {}}, {"cases": changed(), "words": {}}, (None, None), words=True) == 0


def test_words_fail_only_where_asked(capsys):
    records = [{"cases": changed(), "words": {"a": {"stderr": text}}} for text in ("note: old", "note: new")]
    assert len(word_differences(records[0]["words"], records[1]["words"])) == 1
    assert [report(*records, (None, None), words=words) for words in (False, True)] == [0, 1]
    assert "+note: new" in capsys.readouterr().out


def test_a_changed_byte_of_a_file_is_noticed_and_how_far_values_are_apart(tmp_path):
    for name, value in (("was", 1.0), ("is", 1.5)):
        (tmp_path / name / "a").mkdir(parents=True)
        save_file({"x": torch.tensor([value, 2.0])}, tmp_path / name / "a" / "out.safetensors", {"by": name})
    before, now = (changed(files=files_of(tmp_path / name / "a")) for name in ("was", "is"))
    (found,) = differences(before, now, (tmp_path / "was", tmp_path / "is"))
    assert "values are at most 0.5 apart" in found and "note by: 'was' was, 'is' is" in found


def test_seconds_memory_and_places_do_not_count():
    told = [{"seconds": {"total": s}, "peak_rss_bytes": 1e9 * s, "output": f"/tmp/x{s}/out.safetensors", "update": 0.5}
            for s in (1.5, 2.5)]  # fmt: skip
    assert described(json.dumps(told[0])) == described(json.dumps(told[1]))
    assert described(json.dumps(told[0])) != described(json.dumps(told[0] | {"update": 0.6}))
    assert without_places("took 1.5 s of /tmp/a/b.pt") == without_places("took 2.5 s of /var/c/b.pt")
    assert without_places("of /tmp/a/b.pt") != without_places("of /tmp/a/c.pt")


def test_sentences_in_json_are_words_and_their_number_is_not():
    texts = [json.dumps({"warnings": notes, "method": "casa"}) for notes in (["it is so"], ["so it is"], [])]
    one, other, none = map(described, texts)
    assert one["json"] == other["json"] != none["json"] and one["sentences"] != other["sentences"]


def test_a_page_differs_by_its_numbers_and_pictures():
    text = '<p>took 1.5 s</p><img src="data:image/png;base64,AAAA"><td>0.25</td>'
    assert page(text) == page(text.replace("1.5 s", "2.5 s"))
    assert len({page(text), page(text.replace("AAAA", "AAAB")), page(text.replace("0.25", "0.26"))}) == 3


def test_cases_have_names_and_folders_of_their_own():
    cases = all_cases()
    assert len({case.folder for case in cases}) == len(cases)
    assert {case.name for case in cases} >= SPOKEN


def test_a_choice_brings_what_it_builds_on():
    assert [case.name for case in chosen("inspect a transfer")] == ["transfer casa", "inspect a transfer"]
    assert [case.name for case in chosen("cache list")][:2] == ["transfer cache cold", "transfer cache warm"]
    assert chosen("") == all_cases()


def test_a_choice_of_nothing_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["frozen", "compare", "record.json", "--only", "no such case"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no case has 'no such case'" in capsys.readouterr().err


def test_a_run_returns_what_the_command_said(monkeypatch):
    code, out, err = run(["inspect", "missing.safetensors"])
    assert (code, out) == (2, "") and "missing.safetensors does not exist" in err
