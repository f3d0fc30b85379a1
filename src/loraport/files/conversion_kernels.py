"""Choose the kernels that `convert` writes: the source model's where one is given, else those that the names imply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from loraport.errors import MismatchError
from loraport.files.adapters.updates import adapter_kind
from loraport.files.lora.kernels import Kernel, kernel_by_name, written_kernel
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint


def with_kernels(lora: Lora, layers: Iterable[str], model: Checkpoint | None, *, flat: bool) -> Lora:
    """Return the LoRA with the kernels that these layers have in the model that it is written for.

    A file need not tell them: LoHa, LoKr and some trainers store convolutions as matrices. `flat`: for kohya's loaders.
    Raises MismatchError where neither the source nor a name tells the kernel, or the factors have no such columns.
    """
    with_kernel = {name: replace(lora.layers[name], kernel=_kernel(name, lora, model, flat)) for name in layers}
    return replace(lora, layers={**lora.layers, **with_kernel})


def _kernel(layer: str, lora: Lora, model: Checkpoint | None, flat: bool) -> Kernel:
    update, file_kernel = lora.layers[layer].update, lora.layers[layer].kernel
    if model is not None and f"{layer}.weight" in model:
        shape = model.shape(f"{layer}.weight")
        if len(shape) < 2 or update.shape != (shape[0], prod(shape[1:])):
            raise MismatchError(
                f"layer {layer}: the LoRA is {update.shape[0]} × {update.shape[1]}, the weight in {model.where} "
                f"{' × '.join(map(str, shape))}; give the model that this LoRA was trained on"
            )
        return written_kernel(file_kernel, shape[2:])
    named = kernel_by_name(layer, lora, flat)
    if named is not None:
        kernel = written_kernel(file_kernel, named)
        if update.shape[1] % prod(kernel):
            raise MismatchError(
                f"layer {layer} is a convolution of {' × '.join(map(str, kernel))} by its name, but the LoRA has "
                f"{update.shape[1]} columns; name the model it was trained on: --source"
            )
        return kernel
    if file_kernel is None and adapter_kind(update) in ("LoHa", "LoKr"):
        raise MismatchError(
            f"layer {layer} of {lora.path} is a {adapter_kind(update)}, whose tensors do not tell whether it is a "
            "convolution, and its name is in no table; name the model it was trained on: --source"
        )
    return file_kernel or ()
