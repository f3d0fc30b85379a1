"""Procedural video clips: a large object glides over a textured ground on which a ball rests.

The family is trained on them and judged with them. A clip is a float tensor [n, 3, FRAMES, SIZE, SIZE] in [-1, 1];
prompts are an integer tensor [n, 5], one word index per attribute (see ATTRIBUTES). All randomness comes from the
generator that the caller passes.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

FRAMES, SIZE = 8, 36
RADIUS, BALL_RADIUS, SPEED = 6.5, 4.5, 1.5  # pixels; pixels per frame
TIME_FOLD, SPACE_FOLD = 2, 3  # space-to-depth factors between pixels and latents
TEXT_WIDTH = 64

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (1.00, 0.22, 0.18),
    "yellow": (1.00, 0.85, 0.05),
    "green": (0.20, 0.85, 0.25),
    "blue": (0.22, 0.50, 1.00),
    "magenta": (1.00, 0.35, 0.90),
    "white": (1.00, 1.00, 1.00),
}
GROUNDS = {  # colour at the top, colour at the bottom; each has a texture of its own, see `_textures`
    "night": ((0.02, 0.02, 0.10), (0.10, 0.10, 0.30)),
    "lagoon": ((0.01, 0.14, 0.20), (0.03, 0.27, 0.28)),
    "dusk": ((0.20, 0.07, 0.22), (0.42, 0.18, 0.11)),
    "board": ((0.10, 0.10, 0.10), (0.15, 0.14, 0.13)),
}
TINTS = {"noir": (1.0, 1.0, 1.0), "retro": (0.98, 0.78, 0.45)}  # styles of a single tint: colours are gone
MOTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PATHS = ("straight", "swing")  # all the way; there and back
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(GROUNDS),
    "motion": tuple(MOTIONS),
    "ball": tuple(COLOURS),
}
_COUNTS = tuple(map(len, ATTRIBUTES.values()))
_FIRST_WORD = tuple(sum(_COUNTS[:i]) for i in range(len(_COUNTS)))
_NULL_WORD = sum(_COUNTS)


def draw_prompts(count: int, generator: Generator) -> Tensor:
    """`count` prompts, every attribute uniform and independent: integers [count, 5]."""
    return torch.stack([torch.randint(words, (count,), generator=generator) for words in _COUNTS], dim=1)


def describe(prompt: Tensor) -> str:
    """One prompt in words, e.g. `red square moving left, white ball, lagoon`."""
    words = [words[int(i)] for words, i in zip(ATTRIBUTES.values(), prompt, strict=True)]
    shape, colour, background, motion, ball = words
    return f"{colour} {shape} moving {motion}, {ball} ball, {background}"


def embed(prompts: Tensor) -> Tensor:
    """Return prompts as embeddings, in place of a text encoder: one scaled unit vector a word, [n, 5, TEXT_WIDTH]."""
    words = prompts + torch.tensor(_FIRST_WORD)
    return functional.one_hot(words, TEXT_WIDTH).float() * TEXT_WIDTH**0.5


def embed_nothing(count: int) -> Tensor:
    """Return the embedding of the empty prompt, for classifier-free guidance: [count, 5, TEXT_WIDTH]."""
    words = torch.full((count, len(ATTRIBUTES)), _NULL_WORD)
    return functional.one_hot(words, TEXT_WIDTH).float() * TEXT_WIDTH**0.5


def _outside(shapes: Tensor, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed distance in pixels from the edge of each clip's shape, centred at the origin: negative inside."""
    across, along = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    far = (x**2 + y**2).sqrt()
    distances = (
        far - radius,
        across - 0.88 * radius,
        torch.maximum(y - 0.82 * radius, 0.88 * x.abs() - 0.475 * y - 0.55 * radius),  # apex at the top
        torch.maximum(across - 1.08 * radius, along - 0.36 * radius),
    )
    return torch.stack([distances[shape][n] for n, shape in enumerate(shapes.tolist())])


def _paths(motions: Tensor, swings: Tensor, generator: Generator) -> Tensor:
    """Centres [n, FRAMES, 2] (x, y) of paths that keep the whole shape inside the frame."""
    direction = torch.tensor(list(MOTIONS.values()))[motions]
    frame, last = torch.arange(FRAMES), FRAMES - 1
    back = 2 * torch.minimum(frame, last - frame) - last // 2  # twice as fast to the other side, and home again
    travel = SPEED * torch.where(swings[:, None], back, frame - last / 2)
    room = SIZE / 2 - 1.15 * RADIUS - direction.abs() * SPEED * (FRAMES - 1) / 2
    middle = SIZE / 2 + (2 * torch.rand(len(motions), 2, generator=generator) - 1) * room
    return middle[:, None] + direction[:, None] * travel[:, :, None]


def _ball_places(motions: Tensor, starts: Tensor, generator: Generator) -> Tensor:
    """Places [n, 2] on the emptier side of the path, so that the large object covers little of the ball."""
    edge = 1.15 * BALL_RADIUS
    along, across = torch.rand(2, len(motions), generator=generator)
    along = edge + along * (SIZE - 2 * edge)
    vertical = torch.tensor([x == 0 for x, _ in MOTIONS.values()])[motions]
    line = torch.where(vertical, starts[:, 0], starts[:, 1])  # of the path, along which it is constant
    near = torch.where(line < SIZE / 2, line, SIZE - line) + RADIUS + 0.75 * BALL_RADIUS
    near = near.clamp_max(SIZE - edge)
    across = near + across * (SIZE - edge - near)
    across = torch.where(line < SIZE / 2, across, SIZE - across)
    return torch.stack([torch.where(vertical, across, along), torch.where(vertical, along, across)], dim=1)


def _textures() -> Tensor:
    """Return what each ground adds to its two colours: stars, ripples, a setting sun, a chequered board.

    In the order of GROUNDS, [grounds, 3, SIZE, SIZE].
    """
    x, y = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="xy")
    places = [[4, 5], [11, 13], [16, 4], [23, 9], [31, 5], [29, 17], [6, 21], [18, 22], [13, 30], [33, 28]]
    away = torch.stack([x, y], dim=2) - torch.tensor(places)[:, None, None]
    stars = 0.55 * torch.exp(-away.square().sum(-1).amin(0) / 0.9)
    ripples = 0.07 * torch.sin(2 * torch.pi * (y / 6 + 0.35 * torch.sin(2 * torch.pi * x / 18)))
    low = SIZE * 0.78
    sun = 0.24 * (0.5 - ((x - SIZE / 2) ** 2 + (y - low) ** 2).sqrt() + 9).clamp(0, 1) * (y < low)
    board = 0.12 * ((x // 6 + y // 6) % 2)
    one = torch.ones(3, 1, 1)
    warm = torch.tensor([1.0, 0.62, 0.10])[:, None, None]
    return torch.stack([stars * one, ripples * one, sun * warm, board * one])


def _ground(backgrounds: Tensor) -> Tensor:
    """Return the grounds of clips without anything on them: [n, 3, 1, SIZE, SIZE] in [0, 1]."""
    ends = torch.tensor(list(GROUNDS.values()))[backgrounds][..., None, None]  # [n, 2, 3, 1, 1]
    depth = ((torch.arange(SIZE) + 0.5) / SIZE)[:, None]
    return (ends[:, 0] * (1 - depth) + ends[:, 1] * depth + _textures()[backgrounds]).clamp(0, 1)[:, :, None]


def _painted(scene: Tensor, shapes: Tensor, colours: Tensor, centres: Tensor, radius: float) -> Tensor:
    """Put an object on the scene, lit from the upper left; `centres` [n, frames, 2]."""
    pixel = torch.arange(SIZE) + 0.5
    x = (pixel[None, None, None, :] - centres[:, :, 0, None, None]).expand(-1, -1, SIZE, -1)
    y = (pixel[None, None, :, None] - centres[:, :, 1, None, None]).expand(-1, -1, -1, SIZE)
    cover = (0.5 - _outside(shapes, x, y, radius)).clamp(0, 1)[:, None]
    light = (0.92 - 0.13 * (x + y) / (2 * radius)).clamp(0.7, 1)[:, None]
    paint = torch.tensor(list(COLOURS.values()))[colours][:, :, None, None, None]
    return scene * (1 - cover) + paint * light * cover


def render(prompts: Tensor, generator: Generator, swings: Tensor | None = None) -> Tensor:
    """Render clips of these prompts in the plain style; only the places of the two objects are random.

    `swings` [n] says in which of them the large object swings; none do without it.
    """
    shapes, colours, backgrounds, motions, balls = prompts.unbind(1)
    centres = _paths(motions, torch.zeros(len(prompts), dtype=torch.bool) if swings is None else swings, generator)
    place = _ball_places(motions, centres[:, 0], generator)[:, None]
    scene = _painted(_ground(backgrounds), torch.zeros_like(shapes), balls, place, BALL_RADIUS)
    return _painted(scene, shapes, colours, centres, RADIUS) * 2 - 1


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
    flat = unit.transpose(1, 2).reshape(n * f, c, h, w)
    mean = functional.avg_pool2d(functional.pad(flat, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    edge = (flat - mean).abs().amax(1, keepdim=True)
    glow = (edge * 3.5 - 0.25).clamp(0, 1).reshape(n, f, 1, h, w).transpose(1, 2)
    bright = unit / unit.amax(1, keepdim=True).clamp_min(0.05)
    dark = torch.tensor([0.14, 0.02, 0.24])[:, None, None, None] * (0.4 + unit.mean(1, keepdim=True))
    return (dark * (1 - glow) + bright * glow).clamp(0, 1) * 2 - 1


def retro(clips: Tensor) -> Tensor:
    """Sepia with dark scan lines on every third row."""
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


def visible(effect: str) -> tuple[str, ...]:
    """Return the attributes that clips of this effect still show: a tint hides colours, neon most of the background."""
    if effect in TINTS:
        return ("shape", "motion")
    hidden = {"background"} if effect == "neon" else set()
    return tuple(name for name in ATTRIBUTES if name not in hidden)


def to_latents(clips: Tensor) -> Tensor:
    """Space-to-depth, exactly invertible: [n, 3, FRAMES, SIZE, SIZE] -> [n, 54, 4, 12, 12]."""
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
