"""The fields of a PEFT configuration that change what the factors mean, beside alpha and rank (peft 0.21, LoraConfig).

Some initialisations take the adapter's own start out of the base weight when an adapter is made, and again when it is
loaded: what they add to the weight on the disk is s·(B·A − B₀·A₀). PiSSA's and OLoRA's start follows from the weight,
so it is computed where the weight is at hand. That of the others hangs on data or chance that no file keeps.

Left alone, since they say only which modules have adapters, or how they were trained: target_modules, exclude_modules,
layers_to_transform, layers_pattern, lora_dropout, megatron_config, velora_config, monteclora_config (merged without its
samples), ensure_weight_tying, fan_in_fan_out (PEFT takes it for layers stored as [in, out] only, which these models do
not have), the other initialisations (true, false, gaussian, eva, orthogonal, mica), which leave the base as it was.
`bias` and `modules_to_save` show themselves by their tensors, `use_dora` by its magnitudes, `lora_bias` by its biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from loraport.errors import FileFormatError

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
"""The two files of a folder that PEFT wrote."""

Start = Literal["", "PiSSA", "OLoRA"]
"""What an adapter took out of its base."""

_KNOWN_STARTS: Mapping[str, Start] = {"pissa": "PiSSA", "olora": "OLoRA"}

SAVE_AGAIN = (
    "save the adapter again with save_pretrained(path_initial_model_for_weight_conversion=...), which makes a plain "
    "LoRA of it"
)
_MERGE_IN_PEFT = "merge it in PEFT, onto the base that it was trained on"
_LOST_STARTS = {
    "pissa_niter": ("the leading part of the base, by a factorisation with random numbers", SAVE_AGAIN),
    "corda": ("a part of the base that follows from covariances of training data", SAVE_AGAIN),
    "lora_ga": ("a part of the base that follows from gradients on training data", SAVE_AGAIN),
    "loftq": ("the error of quantising the base", _MERGE_IN_PEFT),
}
"""The beginning of init_lora_weights -> (what PEFT took out of the base, what to do)."""

_NO_UPDATES = {
    "kasa_config": "KaSA, which takes the last directions out of the base and scales the factors by a diagonal",
    "use_qalora": "QALoRA, whose factors belong to pooled inputs",
    "use_bdlora": "BD-LoRA, whose factors are block-diagonal",
    "arrow_config": "Arrow, which chooses between adapters for each token",
    "alora_invocation_tokens": "aLoRA, which works on some tokens only",
    "layer_replication": "layer replication, which gives the model other layers than the checkpoint's",
    "target_parameters": "adapters of parameters other than layers' weights (target_parameters)",
}
"""Field -> what it makes of the adapter: no update of one weight of the model."""


def start_of(fields: Mapping[str, Any], origin: str) -> Start:
    """Return what the adapter took out of its base, if that can be computed again.

    Raises FileFormatError, with what to do, for a start that cannot, and for adapters that do not update weights.
    """
    for field, meaning in _NO_UPDATES.items():
        if fields.get(field):
            raise FileFormatError(f"{origin}: {field} is set: this is {meaning}, which this version does not read")
    init = str(fields.get("init_lora_weights", True)).lower()
    for beginning, (taken, remedy) in _LOST_STARTS.items():
        if init.startswith(beginning):
            raise FileFormatError(
                f"{origin}: init_lora_weights is {init!r}: PEFT took {taken}, out of the weights, so the factors alone "
                f"are not what was trained, and the file does not hold the rest; {remedy}"
            )
    start = _KNOWN_STARTS.get(init, "")
    if start and fields.get("use_dora"):
        raise FileFormatError(f"{origin}: a DoRA that started as {start} is not read; {SAVE_AGAIN}")
    return start
