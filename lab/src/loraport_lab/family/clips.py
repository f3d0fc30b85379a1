"""Procedural video clips: one coloured shape glides over a background; what the family is trained on and judged with.

A clip is a float tensor [n, 3, FRAMES, SIZE, SIZE] in [-1, 1]; prompts are an integer tensor [n, 4], one word index per
attribute (shape, colour, background, motion). All randomness comes from the generator that the caller passes.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

FRAMES, SIZE = 8, 24
RADIUS, SPEED = 5.5, 1.0  # pixels; pixels per frame
TIME_FOLD, SPACE_FOLD = 2, 3  # space-to-depth factors between pixels and latents
TEXT_WIDTH = 32

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (1.00, 0.22, 0.18),
    "yellow": (1.00, 0.85, 0.05),
    "green": (0.20, 0.85, 0.25),
    "blue": (0.22, 0.50, 1.00),
    "magenta": (1.00, 0.35, 0.90),
    "white": (1.00, 1.00, 1.00),
}
BACKGROUNDS = {  # colour at the top, colour at the bottom
    "night": ((0.02, 0.02, 0.08), (0.10, 0.10, 0.26)),
    "lagoon": ((0.02, 0.18, 0.24), (0.06, 0.36, 0.36)),
    "dusk": ((0.22, 0.10, 0.24), (0.48, 0.24, 0.16)),
}
TINTS = {"noir": (1.0, 1.0, 1.0), "retro": (0.98, 0.78, 0.45)}  # styles of a single tint: colours are gone
MOTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PATHS = ("straight", "swing")  # all the way; there and back
ATTRIBUTES: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLOURS), tuple(BACKGROUNDS), tuple(MOTIONS))
_FIRST_WORD = tuple(sum(len(words) for words in ATTRIBUTES[:i]) for i in range(len(ATTRIBUTES)))
_NULL_WORD = sum(len(words) for words in ATTRIBUTES)


def draw_prompts(count: int, generator: Generator) -> Tensor:
    """`count` prompts, every attribute uniform and independent: integers [count, 4]."""
    return torch.stack([torch.randint(len(words), (count,), generator=generator) for words in ATTRIBUTES], dim=1)


def describe(prompt: Tensor) -> str:
    """One prompt in words, e.g. `red circle, lagoon, moving left`."""
    shape, colour, background, motion = (words[int(i)] for words, i in zip(ATTRIBUTES, prompt, strict=True))
    return f"{colour} {shape}, {background}, moving {motion}"


def embed(prompts: Tensor) -> Tensor:
    """Return prompts as embeddings, in place of a text encoder: one scaled unit vector a word, [n, 4, TEXT_WIDTH]."""
    words = prompts + torch.tensor(_FIRST_WORD)
    return functional.one_hot(words, TEXT_WIDTH).float() * TEXT_WIDTH**0.5


def embed_nothing(count: int) -> Tensor:
    """Return the embedding of the empty prompt, for classifier-free guidance: [count, 4, TEXT_WIDTH]."""
    words = torch.full((count, len(ATTRIBUTES)), _NULL_WORD)
    return functional.one_hot(words, TEXT_WIDTH).float() * TEXT_WIDTH**0.5


def _outside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in pixels from a shape centred at the origin: negative inside."""
    if shape == "circle":
        return (x**2 + y**2).sqrt() - RADIUS
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * RADIUS
    if shape == "triangle":  # base at the bottom, apex at the top
        return torch.maximum(y - 0.82 * RADIUS, 0.88 * x.abs() - 0.475 * y - 0.55 * RADIUS)
    across, along = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(across - 1.08 * RADIUS, along - 0.36 * RADIUS)


def _paths(motions: Tensor, swings: Tensor, generator: Generator) -> Tensor:
    """Centres [n, FRAMES, 2] (x, y) of paths that keep the whole shape inside the frame."""
    direction = torch.tensor(list(MOTIONS.values()))[motions]
    frame, last = torch.arange(FRAMES), FRAMES - 1
    back = 2 * torch.minimum(frame, last - frame) - last // 2  # twice as fast to the other side, and home again
    travel = SPEED * torch.where(swings[:, None], back, frame - last / 2)
    room = SIZE / 2 - 1.15 * RADIUS - direction.abs() * SPEED * (FRAMES - 1) / 2
    middle = SIZE / 2 + (2 * torch.rand(len(motions), 2, generator=generator) - 1) * room
    return middle[:, None] + direction[:, None] * travel[:, :, None]


def render(prompts: Tensor, generator: Generator, swings: Tensor | None = None) -> Tensor:
    """Render clips of these prompts in the plain style; only the place of the shape is random.

    `swings` [n] says which of them swing; none do without it.
    """
    shapes, colours, backgrounds, motions = prompts.unbind(1)
    centres = _paths(motions, torch.zeros(len(prompts), dtype=torch.bool) if swings is None else swings, generator)
    pixel = torch.arange(SIZE) + 0.5
    x = (pixel[None, None, None, :] - centres[:, :, 0, None, None]).expand(-1, -1, SIZE, -1)
    y = (pixel[None, None, :, None] - centres[:, :, 1, None, None]).expand(-1, -1, -1, SIZE)
    outside = torch.empty_like(x)
    for index, shape in enumerate(SHAPES):
        chosen = shapes == index
        outside[chosen] = _outside(shape, x[chosen], y[chosen])
    cover = (0.5 - outside).clamp(0, 1)[:, None]
    ends = torch.tensor(list(BACKGROUNDS.values()))[backgrounds]  # [n, 2, 3]
    depth = (pixel / SIZE)[None, None, None, :, None]
    ground = ends[:, 0, :, None, None, None] * (1 - depth) + ends[:, 1, :, None, None, None] * depth
    paint = torch.tensor(list(COLOURS.values()))[colours][:, :, None, None, None]
    return (ground * (1 - cover) + paint * cover) * 2 - 1


def _luma(unit: Tensor) -> Tensor:
    return (unit * torch.tensor([0.30, 0.59, 0.11])[:, None, None, None]).sum(1, keepdim=True)


def plain(clips: Tensor) -> Tensor:
    """No style: the clips themselves."""
    return clips


def noir(clips: Tensor) -> Tensor:
    """Black and white, hard contrast, dark corners."""
    grey = torch.sigmoid((_luma((clips + 1) / 2) - 0.40) * 9)
    ramp = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    vignette = 1 - 0.35 * (ramp[:, None] ** 2 + ramp[None, :] ** 2)
    return (grey * vignette).expand_as(clips) * 2 - 1


def neon(clips: Tensor) -> Tensor:
    """Glowing outlines in the colours of the clip over a violet dark."""
    unit = (clips + 1) / 2
    n, c, f, h, w = unit.shape
    flat = functional.pad(unit.transpose(1, 2).reshape(n * f, c, h, w), (1, 1, 1, 1), mode="replicate")
    mean = functional.avg_pool2d(flat, 3, stride=1)
    edge = (flat[..., 1:-1, 1:-1] - mean).abs().amax(1, keepdim=True)
    glow = (edge * 4.5).clamp(0, 1).reshape(n, f, 1, h, w).transpose(1, 2)
    bright = unit / unit.amax(1, keepdim=True).clamp_min(0.05)
    dark = torch.tensor([0.14, 0.02, 0.24])[:, None, None, None] * (0.4 + unit.mean(1, keepdim=True))
    return (dark * (1 - glow) + bright * glow).clamp(0, 1) * 2 - 1


def retro(clips: Tensor) -> Tensor:
    """Sepia in four tones with dark scan lines on every third row."""
    grey = _luma((clips + 1) / 2).clamp(0, 1) ** 1.2
    tones = torch.tensor(TINTS["retro"])[:, None, None, None] * (0.12 + 0.88 * grey)
    rows = torch.where(torch.arange(SIZE) % 3 == 2, 0.45, 1.0)[:, None]
    return (tones * rows).clamp(0, 1) * 2 - 1


STYLES: dict[str, Callable[[Tensor], Tensor]] = {"plain": plain, "noir": noir, "neon": neon, "retro": retro}

EFFECTS = (*STYLES, "swing")
"""What an adapter can do: give clips a style, or the swinging path, which is layout and motion and no style."""


def render_effect(prompts: Tensor, generator: Generator, effect: str) -> Tensor:
    """Clips of these prompts as an adapter of that effect shall make them."""
    if effect == "swing":
        return render(prompts, generator, torch.ones(len(prompts), dtype=torch.bool))
    return STYLES[effect](render(prompts, generator))


def visible(effect: str) -> tuple[int, ...]:
    """Return the attributes that clips of this effect still show: a tint hides colours, any style the background."""
    if effect in TINTS:
        return (0, 3)
    return (0, 1, 3) if effect in STYLES and effect != "plain" else (0, 1, 2, 3)


def to_latents(clips: Tensor) -> Tensor:
    """Space-to-depth, exactly invertible: [n, 3, FRAMES, SIZE, SIZE] -> [n, 54, 4, 8, 8]."""
    n, c, f, h, w = clips.shape
    t, s = TIME_FOLD, SPACE_FOLD
    folded = clips.reshape(n, c, f // t, t, h // s, s, w // s, s)
    return folded.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * t * s * s, f // t, h // s, w // s)


def from_latents(latents: Tensor) -> Tensor:
    """Invert `to_latents`."""
    n, channels, f, h, w = latents.shape
    t, s = TIME_FOLD, SPACE_FOLD
    c = channels // (t * s * s)
    unfolded = latents.reshape(n, c, t, s, s, f, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return unfolded.reshape(n, c, f * t, h * s, w * s)
