"""Prompts from files of every kind, and what is refused in them."""

import json

import pytest

from loraport.errors import InputError
from loraport.sampling.prompts import built_in_prompts, read_prompts

VBENCH = [
    {"prompt_en": "a person is swimming in ocean", "dimension": ["human_action"], "auxiliary_info": {}},
    {"prompt_en": "a cat", "dimension": ["subject_consistency"]},
    {"prompt_en": "a cat", "dimension": ["imaging_quality"]},
]


def test_thirty_scenes_are_built_in():
    prompts = built_in_prompts()
    assert read_prompts(None) == prompts and len(prompts) == len(set(prompts)) == 30
    assert all(prompt == prompt.strip() and len(prompt) > 20 for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.txt", "a cat\n\n  a dog \n", ("a cat", "a dog")),
        ("none", "a cat", ("a cat",)),
        ("a.txt", "\ufeffa cat\n", ("a cat",)),
        ("a.jsonl", '{"text": "a cat"}\n\n{"prompt": "a dog", "text": "no"}\n"a bird"\n', ("a cat", "a dog", "a bird")),
        ("full_info.json", json.dumps(VBENCH), ("a person is swimming in ocean", "a cat")),
        ("a.json", '["a cat", {"caption": "a dog"}]', ("a cat", "a dog")),
    ],
)
def test_a_file_of_prompts_is_read(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(str(tmp_path / name)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", " \n\n", "has no prompts"),
        ("a.json", "[]", "has no prompts"),
        ("a.json", '{"prompt": "a cat"}', "no JSON list"),
        ("a.json", "a cat", "is not a JSON list"),
        ("a.jsonl", '{"prompt": "a cat"}\na dog\n', "is not a JSON object in each line"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"words": "a dog"}\n', "entry 2 has no prompt"),
        ("a.json", '["a cat", 3]', "entry 2 has no prompt"),
        ("a.json", '[{"prompt": ""}]', "entry 1 has no prompt"),
        ("a.json", "[" * 100_000, "is not a JSON list"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says) as caught:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("a.txt", "missing.txt"):
        with pytest.raises(InputError, match="cannot be read as text"):
            read_prompts(str(tmp_path / name))
