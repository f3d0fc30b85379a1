"""What is sampled when a user names a model: a pipeline, or a network with the rest from one, and accelerators."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.errors import InputError, MismatchError, SettingsError
from loraport.files.accelerator_names import fitted
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.locate import open_lora
from loraport.files.models.hub import fetch_pipeline, listing, looks_like_hub_id
from loraport.files.models.presets import location, open_model
from loraport.files.strength import split_strength
from loraport.inputs.accelerator import SOURCE, split_target
from loraport.progress import NO_PROGRESS, Progress, counter

INDEX = "model_index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SampledModel:
    """A model that can be sampled, found on the disk; nothing of it is open yet."""

    name: str
    """As it was asked for."""
    folder: Path
    """The pipeline: all of it, or all but the network."""
    network: str | None = None
    """Another place of the network's weights than the pipeline's own."""
    accelerators: tuple[tuple[str, float], ...] = ()
    """LoRAs that belong to the model, with their strengths."""
    notes: tuple[str, ...] = ()

    def weights(self) -> Iterator[Path]:
        """Yield the files of the networks' weights, the accelerators' left out."""
        if self.network is not None:
            yield from open_model(self.network).paths
            return
        for part in ("transformer", "transformer_2", "unet"):
            yield from sorted(path for path in (self.folder / part).glob("*") if path.suffix in _WEIGHTS)

    def as_json(self, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
        """Return what a manifest says of it: names, and hashes of all that is sampled."""
        revision = self.folder.name if self.folder.parent.name == "snapshots" else None
        return {
            "name": self.name,
            "revision": revision,
            "weights": digest_of(list(self.weights()), counter(progress, f"hashing {self.name}", self._bytes())),
            "accelerators": [
                {"name": Path(place).name, "sha256": open_lora(place).sha256, "strength": strength}
                for place, strength in self.accelerators
            ],
        }

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights())


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def digest_of(files: Sequence[Path], report: Callable[[int], None]) -> str:
    """Return a hash of the contents of files, wherever they lie. `report` gets the bytes that are done."""
    whole = hashlib.sha256()
    for path in files:
        blob = path.resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):  # the Hub's cache: the name is the hash
            whole.update(bytes.fromhex(blob.name))
            report(blob.stat().st_size)
            continue
        own = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                own.update(block)
                report(len(block))
        whole.update(own.digest())
    return whole.hexdigest()


def find_model(
    text: str, *, source: str | None = None, pipeline: str | None = None, whole: bool = False
) -> SampledModel:
    """Find the model that a text means: MODEL, or MODEL+ACCELERATOR[*S]+..., where MODEL may be `source`.

    `whole`: with its VAE, which makes pictures of latents. MODEL is a pipeline (a folder or a Hub id), a preset, or a
    network alone: then `pipeline` has the rest, or the source's pipeline does. Raises InputError for what is not there,
    and for a network without the rest.
    """
    base, accelerators = split_accelerators(text if source is None else fitted(text, source))
    if base == SOURCE:
        if source is None:
            raise SettingsError(f"{text!r}: only the target can be the source with an accelerator")
        base = source
    folder = _pipeline(base, whole)
    if folder is not None:
        return SampledModel(text, folder, None, accelerators)
    rest = pipeline
    notes: tuple[str, ...] = ()
    if rest is None and source is not None and source != base:
        rest = split_accelerators(source)[0]
        notes = (f"{base} is a network alone: text encoder, VAE, scheduler are the source's; --pipeline names others",)
    if rest is None:
        raise InputError(
            f"{base} has no {INDEX}: it is a network alone, and sampling needs a text encoder, a VAE and a scheduler; "
            "name the pipeline that has them: --pipeline wan2.1-t2v-1.3b, or a folder"
        )
    folder = _pipeline(rest, whole)
    if folder is None:
        raise InputError(f"{rest} has no {INDEX}: give a whole diffusers pipeline, a folder or a Hub id, for the rest")
    return SampledModel(text, folder, location(base), accelerators, notes)


def split_accelerators(text: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Return the model in `MODEL+A.safetensors*0.8+B`, and its accelerators with their strengths.

    Raises SettingsError for an empty piece, InputError for an accelerator that is not there.
    """
    pieces = split_target(text)
    if pieces is None:
        return text, ()
    model, *accelerators = pieces
    split = tuple(split_strength(one) for one in accelerators)
    missing = [place for place, _ in split if not (expand_home(place).exists() or looks_like_hub_id(place))]
    if missing:
        raise InputError(
            f"{text!r}: no accelerator {missing[0]!r} is there; write MODEL+FILE*0.8, MODEL may be the word source"
        )
    return model, split


def _pipeline(text: str, whole: bool) -> Path | None:
    """Return the folder of a pipeline; None for a network alone. A pipeline on the Hub is fetched.

    Raises InputError for a place that is neither here nor on the Hub.
    """
    where = location(text)
    here = expand_home(where)
    if here.exists():
        if here.is_dir() and here.name in ("transformer", "transformer_2", "unet") and (here.parent / INDEX).is_file():
            raise MismatchError(f"{text} is one part of a pipeline; to sample from it, give the whole: {here.parent}")
        return here if (here / INDEX).is_file() else None
    repository, _, inside = where.partition(":")
    if not looks_like_hub_id(where):
        raise InputError(f"{text} is not there; give a diffusers pipeline, a folder or a Hub id, or a network's file")
    if inside and not inside.startswith(("transformer", "unet")):
        return None
    names = listing(repository)
    if names is not None and INDEX not in names:
        return None
    return fetch_pipeline(repository, whole=whole)
