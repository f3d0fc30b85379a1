"""A tokenizer.json of 256 bytes and Qwen2-VL's own words, in which every text is as many tokens as bytes."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)


def byte_letters() -> list[str]:
    """Return the letters that byte-level vocabularies write the bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]


def write_words(path: str | Path) -> None:
    letters = byte_letters()
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [dict(id=len(letters) + place, content=word, **special) for place, word in enumerate(WORDS)]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="")
    model |= dict(fuse_unk=False, byte_fallback=False, ignore_merges=False, merges=[])
    model |= dict(vocab={letter: place for place, letter in enumerate(letters)})
    content = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None)
    content |= dict(pre_tokenizer=level, post_processor=level, decoder=level, model=model)
    Path(path).write_text(json.dumps(content), encoding="utf-8")
