"""Named models: which repository of the Hub, which file or folder in it, and what of that is not verified.

Ids and file names come from the projects' own READMEs and documentation and from the Hub's public listings. No weights
were downloaded for this table: `unverified` says what to look at when they are. Where `seen` is None, the listing
itself was not seen. Nothing is pinned to a commit, since full commit ids were not to be had; `org/repo@COMMIT` pins
one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from loraport.errors import SettingsError, near_miss, unknown_name
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Preset:
    """One model under a short name."""

    name: str
    family: str
    repo: str
    inside: str
    """The folder or file to take; empty where the repository holds one network."""
    base: str | None = None
    """The preset that it was distilled from: what to give as `--source`."""
    notes: str = ""
    unverified: str = ""
    revision: str | None = None
    gigabytes: float | None = None
    """What is fetched of it, where that is known."""
    seen: str | None = None
    """The commit (shortened, as the Hub shows it) at which the repository's listing was seen."""

    @property
    def where(self) -> str:
        """The Hub id that `--source` and `--target` take."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f':{self.inside}' if self.inside else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return the row of `presets --json`."""
        return {**asdict(self), "where": self.where}

    def words(self) -> str:
        """Return the row for people: the id, then the notes."""
        size = f", {self.gigabytes:g} GB" if self.gigabytes else ""
        from_base = f", distilled from {self.base}" if self.base else ""
        lines = [f"{self.where}  ({self.family}{from_base}{size})", self.notes]
        lines += [f"not verified: {self.unverified}"] if self.unverified else []
        if self.revision is None:
            seen = f"; its listing was seen at {self.seen}, a shortened id, which pins nothing" if self.seen else ""
            lines.append(f"no commit is pinned: the repository's newest is taken{seen}")
        return "\n".join(line for line in lines if line)


_WAN, _HUNYUAN, _SDXL = "wan", "hunyuanvideo-1.5", "sdxl"
_CFG = "distilled: names and shapes of the base; fp32 by the repository's size"
_LIGHTX2V = "bf16, says LightX2V's documentation; the scaled fp8 file beside it is read too, the int8 one is not"
_HV_LISTING = "the listing of the folder (the README names it)"


def _wan(
    name: str,
    where: str,
    base: str | None = None,
    notes: str = "",
    unverified: str = "",
    *,
    seen: str | None = None,
    gigabytes: float | None = None,
) -> Preset:
    repo, _, inside = where.partition(":")
    return Preset(name, _WAN, repo, inside, base, notes, unverified, seen=seen, gigabytes=gigabytes)


def _hunyuan(name: str, version: str, base: str | None = None) -> Preset:
    label = f"hunyuanvideo-1.5-{name}"
    parent = f"hunyuanvideo-1.5-{base}" if base else None
    inside = f"transformer/{version}"
    notes = _CFG if base else "fp32 by the repository's size"
    return Preset(label, _HUNYUAN, "tencent/HunyuanVideo-1.5", inside, parent, notes, _HV_LISTING, seen="66b1147")


_ALL = (
    # Wan, as its makers publish it
    _wan("wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers:transformer", notes="fp32, 2 shards", gigabytes=5.7),
    _wan("wan2.1-t2v-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers:transformer", notes="fp32, 12 shards", gigabytes=57),
    _wan("wan2.1-i2v-14b-480p", "Wan-AI/Wan2.1-I2V-14B-480P", notes="original names, shards with index",
         unverified="the dtype, and the number of shards (7 in the 720p repository)"),
    _wan("wan2.1-i2v-14b-720p", "Wan-AI/Wan2.1-I2V-14B-720P", notes="original names, 7 shards with index",
         unverified="the dtype"),
    *(_wan(f"wan2.2-{kind}-a14b-{noise}", f"Wan-AI/Wan2.2-{kind.upper()}-A14B:{noise}_noise_model",
           notes="fp32; one of two experts, each with a LoRA of its own",
           unverified="the number of shards (6 and 9 are both reported)")
      for kind in ("t2v", "i2v") for noise in ("high", "low")),
    _wan("wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B", unverified="the layout of the repository and the dtype"),
    # FastWan
    _wan("fastwan2.1-t2v-1.3b", "FastVideo/FastWan2.1-T2V-1.3B-Diffusers:transformer", "wan2.1-t2v-1.3b",
         "one file: 16 bits, with the gates of sparse attention, which the base lacks and which stay",
         "that the 16 bits are bf16", seen="75640eb", gigabytes=2.98),
    _wan("fastwan2.1-t2v-14b", "FastVideo/FastWan2.1-T2V-14B-Diffusers:transformer", "wan2.1-t2v-14b",
         "two shards, with gates", "the dtype: the size fits neither fp32 nor bf16", seen="ab7d614", gigabytes=52.5),
    _wan("fastwan2.1-t2v-14b-480p", "FastVideo/FastWan2.1-T2V-14B-480P-Diffusers:transformer", "wan2.1-t2v-14b",
         "with gates", "the listing and the dtype"),
    _wan("fastwan2.2-ti2v-5b", "FastVideo/FastWan2.2-TI2V-5B-Diffusers:transformer", "wan2.2-ti2v-5b",
         "with gates", "the listing and the dtype"),
    _wan("fastwan2.2-ti2v-5b-fullattn", "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers:transformer",
         "wan2.2-ti2v-5b", "without gates", "the files of the transformer and the dtype", seen="7b04595"),
    # causal models
    _wan("self-forcing", "gdhe17/Self-Forcing:checkpoints/self_forcing_dmd.pt", "wan2.1-t2v-1.3b",
         "generator_ema is taken where it is there; --target-part generator takes the other",
         "which of generator and generator_ema the file holds, and the dtype"),
    _wan("rolling-forcing", "TencentARC/RollingForcing:checkpoints/rolling_forcing_dmd.pt", "wan2.1-t2v-1.3b",
         "generator, generator_ema (taken) and critic, fp32 by the size; --target-part generator is the other",
         gigabytes=17),
    _wan("causvid", "tianweiy/CausVid:autoregressive_checkpoint/model.pt", "wan2.1-t2v-1.3b",
         "bidirectional_checkpoint1 and 2 lie beside it", "the dtype, and whether it holds a critic"),
    _wan("krea-realtime-14b", "krea/krea-realtime-video:krea-realtime-video-14b.safetensors", "wan2.1-t2v-14b",
         "original names behind `model.`", "the dtype"),
    # LightX2V, four steps
    *(_wan(f"lightx2v-{name}", f"lightx2v/Wan2.1-Distill-Models:wan2.1_{file}_lightx2v_4step.safetensors",
           f"wan2.1-{name}", _LIGHTX2V, "the dtype")
      for name, file in (("t2v-14b", "t2v_14b"), ("i2v-14b-480p", "i2v_480p"), ("i2v-14b-720p", "i2v_720p"))),
    *(_wan(f"lightx2v-wan2.2-i2v-a14b-{noise}",
           f"lightx2v/Wan2.2-Distill-Models:wan2.2_i2v_A14b_{noise}_noise_lightx2v_4step.safetensors",
           f"wan2.2-i2v-a14b-{noise}", _LIGHTX2V, "the dtype") for noise in ("high", "low")),
    # HunyuanVideo-1.5
    _hunyuan("480p-t2v", "480p_t2v"),
    _hunyuan("480p-i2v", "480p_i2v"),
    _hunyuan("720p-t2v", "720p_t2v"),
    _hunyuan("720p-i2v", "720p_i2v"),
    _hunyuan("480p-t2v-distilled", "480p_t2v_distilled", "480p-t2v"),
    _hunyuan("480p-i2v-distilled", "480p_i2v_distilled", "480p-i2v"),
    _hunyuan("480p-i2v-step-distilled", "480p_i2v_step_distilled", "480p-i2v"),
    _hunyuan("720p-i2v-distilled", "720p_i2v_distilled", "720p-i2v"),
    # U-Nets
    Preset("sd1.5", "sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing: a mirror of a repository that was withdrawn"),
    Preset("sdxl", _SDXL, "stabilityai/stable-diffusion-xl-base-1.0", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing and the dtype"),
    Preset("ssd-1b", _SDXL, "segmind/SSD-1B", "unet/diffusion_pytorch_model.safetensors", "sdxl",
           "34 transformer blocks where SDXL has 70: layers are paired by similarity; fp32",
           "the name of the file in unet/", seen="8a9257c"),
)  # fmt: skip

PRESETS = {preset.name: preset for preset in _ALL}


def presets(family: str | None = None) -> dict[str, Preset]:
    """Return the named models, by name; those of one family, where one is given.

        for name, preset in loraport.presets("wan").items():
            print(name, preset.where, preset.base)

    Nothing is fetched. `where` of a preset is its Hub id, `base` the preset that it was distilled from. Raises
    SettingsError for an unknown family.
    """
    families = list(dict.fromkeys(preset.family for preset in _ALL))
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    return {preset.name: preset for preset in _ALL if family in (None, preset.family)}


def chosen_presets(names: Collection[str] = (), family: str | None = None) -> tuple[Preset, ...]:
    """Return the presets of these names, or all; of one family where it is given. Raises SettingsError for others."""
    for name in names:
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
    of_family = presets(family)
    return tuple(of_family[name] for name in names or of_family if name in of_family)


def preset_tables(chosen: Iterable[Preset]) -> dict[str, list[list[str]]]:
    """Return a table for each family, headings first: name, base, size, and a star where something is not verified."""
    tables: dict[str, list[list[str]]] = {}
    for preset in chosen:
        rows = tables.setdefault(preset.family, [["name", "distilled from", "GB", ""]])
        size = f"{preset.gigabytes:g}" if preset.gigabytes else ""
        rows.append([preset.name, preset.base or "", size, "*" if preset.unverified else ""])
    return tables


def location(text: str) -> str:
    """Return the Hub id behind a preset's name; any other text as it is.

    Raises SettingsError where a file or folder here has the name of a preset: neither is taken silently.
    """
    preset = PRESETS.get(text)
    if preset is None:
        if "/" not in text and not expand_home(text).exists() and (near := near_miss(text, PRESETS)):
            raise SettingsError(
                f"{text} does not exist, and is no preset; did you mean {near!r}? `loraport presets` lists them"
            )
        return text
    if Path(text).exists():
        raise SettingsError(
            f"{text!r} is a preset and also lies here; write ./{text} for the one here, {preset.where} for the preset"
        )
    return preset.where


def is_local(text: str) -> bool:
    """Return whether a model lies here, so that reading more of it downloads nothing."""
    return Path(location(text)).exists()


class Opener(Protocol):
    """Opens a model by a preset's name or by its location, as `open_model` does."""

    def __call__(self, text: str, *, part: str | None = None, layers: Collection[str] | None = None) -> Checkpoint:
        """Return the opened model."""


def open_model(text: str, *, part: str | None = None, layers: Collection[str] | None = None) -> Checkpoint:
    """Open a model by a preset's name or by its location. Raises what `location` and `open_checkpoint` raise."""
    return open_checkpoint(location(text), part=part, layers=layers)
