"""CLIP's two transformers under the names that OpenAI and open_clip publish them: what CSD and HPSv2 are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TowerSize:
    """How wide and deep a transformer is."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class PictureSize:
    """What a picture is cut into."""

    side: int
    patch: int

    @property
    def tokens(self) -> int:
        """The number of patches, and one more for the whole."""
        return (self.side // self.patch) ** 2 + 1


class QuickGelu(nn.Module):
    """OpenAI's approximation of the Gaussian error unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, let through by a sigmoid."""
        return x * torch.sigmoid(1.702 * x)


class _Mlp(nn.Module):
    def __init__(self, width: int, quick: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = QuickGelu() if quick else nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class _Block(nn.Module):
    def __init__(self, size: TowerSize, quick: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(size.width, size.heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(size.width)
        self.mlp = _Mlp(size.width, quick)
        self.ln_2 = nn.LayerNorm(size.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """The layers of a tower."""

    def __init__(self, size: TowerSize, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([_Block(size, quick) for _ in range(size.layers)])

    def forward(self, x: Float[Tensor, "n t w"], mask: Float[Tensor, "t t"] | None = None) -> Float[Tensor, "n t w"]:
        """Return the tokens after all layers."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class PictureTower(nn.Module):
    """The transformer that looks at pictures; without a `joint` width it gives its own vector."""

    def __init__(self, size: TowerSize, picture: PictureSize, quick: bool, joint: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, size.width, picture.patch, picture.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(size.width))
        self.positional_embedding = nn.Parameter(torch.empty(picture.tokens, size.width))
        self.ln_pre = nn.LayerNorm(size.width)
        self.transformer = Blocks(size, quick)
        self.ln_post = nn.LayerNorm(size.width)
        self.proj = None if joint is None else nn.Parameter(torch.empty(size.width, joint))

    def forward(self, pictures: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n w"]:
        """Return a vector for each picture."""
        patches = self.conv1(pictures).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([whole, patches], dim=1) + self.positional_embedding
        pooled = self.ln_post(self.transformer(self.ln_pre(tokens))[:, 0])
        return pooled if self.proj is None else pooled @ self.proj


class TextClip(nn.Module):
    """Both transformers, as open_clip stores them: a vector for a picture and one for a text, in the same space."""

    def __init__(
        self, picture: PictureSize, eye: TowerSize, reader: TowerSize, joint: int, words: int, length: int
    ) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(length, reader.width))
        self.text_projection = nn.Parameter(torch.empty(reader.width, joint))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.visual = PictureTower(eye, picture, quick=False, joint=joint)
        self.transformer = Blocks(reader, quick=False)
        self.token_embedding = nn.Embedding(words, reader.width)
        self.ln_final = nn.LayerNorm(reader.width)

    def read(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n joint"]:
        """Return a vector for each text: what stands at its last token, the one with the highest number."""
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
