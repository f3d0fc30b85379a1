"""Weights of a network from the file that its authors publish: every name and every shape is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from loraport.errors import FileFormatError, InputError
from loraport.files.formats.pickled import read_pickle
from loraport.files.formats.safetensors_read import StoredTensor, read_safetensors

Network = TypeVar("Network", bound=nn.Module)
_AGAIN = "fetch the file that `loraport evaluate --list` names for this metric"


def stored_weights(path: Path, part: str | None = None, objects_aside: bool = False) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file or a pickle; `part` is the entry of the pickle that holds the network.

    `objects_aside`: of a trainer's objects in the pickle nothing is read. Without it they make the file refused.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; {_AGAIN}")
    if path.suffix == ".safetensors":
        return read_safetensors(path).tensors
    return read_pickle(path, part, objects_aside=objects_aside)[0]


def build(
    make: Callable[[], Network],
    weights: Mapping[str, StoredTensor],
    path: Path,
    title: str,
    device: torch.device,
) -> Network:
    """Return a network with the weights of a file in float32, ready to look, on the device.

    Raises FileFormatError, one sentence, for a file with a name too few or too many, or of another shape.
    """
    with torch.device("meta"):
        network = make()
    check_names(network.state_dict(), weights, path, title)
    network.load_state_dict({name: stored.read().float() for name, stored in weights.items()}, assign=True)
    return network.requires_grad_(False).eval().to(device)


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, StoredTensor], path: Path, title: str) -> None:
    """Raise FileFormatError unless the file holds exactly the expected tensors, each of its shape."""
    lacking = [name for name in expected if name not in found]
    if lacking:
        raise FileFormatError(f"{path} is not {title}: it lacks {_listed(lacking)}; {_AGAIN}")
    spare = [name for name in found if name not in expected]
    if spare:
        raise FileFormatError(f"{path} is not {title}, which has no {_listed(spare)}; {_AGAIN}")
    for name, tensor in expected.items():
        if tuple(tensor.shape) != found[name].shape:
            raise FileFormatError(
                f"{path} is not {title}: {name!r} is of shape {list(found[name].shape)}, and {list(tensor.shape)} is "
                f"needed; {_AGAIN}"
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"
