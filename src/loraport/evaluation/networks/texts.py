"""Prompts as CLIP reads them: words made tokens by the vocabulary that OpenAI published."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from loraport.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_TEXT = 77
"""Tokens, start and end among them; what is longer is cut, as CLIP's authors do."""


def read_vocabulary(path: Path) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`. Raises InputError and FileFormatError."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path} is not there; fetch the file that `loraport evaluate --list` names for this metric")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise FileFormatError(f"{path} is not a tokenizer.json ({error}); download it again") from error


def clip_tokens(tokenizer: Tokenizer, text: str) -> Int[Tensor, "1 t"]:
    """Return the tokens of a prompt, cleaned as open_clip does it: entities of HTML and curly quotes made plain.

    Ligatures and letters of double width, which open_clip also makes plain, are left as they are.
    """
    plain = html.unescape(html.unescape(text)).strip()
    plain = re.sub("[\u02bc\u2018-\u201b]", "'", re.sub("[\u201c-\u201f]", '"', plain))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST_TEXT)
    return torch.tensor([tokenizer.encode(plain).ids])
