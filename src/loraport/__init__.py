"""loraport: move a LoRA from a base diffusion model to its distilled variants, by linear algebra on the weights.

    import loraport

    config = loraport.TransferConfig("style.safetensors", source="base/", target="student/", output="moved.safetensors")
    result = loraport.transfer(config)

Symbols, as the code and the paper (CASA, arXiv 2605.01929) write them; n = min(out, in), r is the LoRA's rank:

    W_s, W_t          out × in              weight of the source and of the target; a convolution's kernel is reshaped
    U, S, Vh          out × n, n, n × in    thin singular basis of W_s, S descending
    B, A              out × r, r × in       LoRA factors with the whole scale (alpha / rank, strength) folded in
    D_lora = B·A      out × in              what the LoRA adds to W_s
    D_fft = W_t − W_s out × in              the drift: what the distillation added to W_s
    C = Uᵀ·D·V        n × n                 routing matrix of an update (Eq. 2); rows receive, columns send
    k                                       leading directions: smallest k with Σ_{i≤k} S_i² ≥ energy · Σ S_i² (Eq. 3)
    D'                out × in              the transferred update, factored again to the rank that was asked for

The names below are loaded when they are first used: importing loraport does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraport._version import __version__ as __version__

if TYPE_CHECKING:
    from loraport.analysis.inputs import AnalyzeConfig
    from loraport.analysis.results import Analysis
    from loraport.analysis.run import analyze
    from loraport.conversion import Conversion, convert
    from loraport.diagnosis.diagnose import diagnose
    from loraport.diagnosis.recommend import recommended
    from loraport.diagnosis.result import Diagnosis
    from loraport.errors import InputError, LoraportError, OutputError, SettingsError
    from loraport.files.adapters.lora_layer import LoraLayer
    from loraport.files.inspect import inspect
    from loraport.files.lora.key_account import KeyAccount
    from loraport.files.lora.read import Lora, read_lora
    from loraport.files.lora.write import write_lora
    from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
    from loraport.files.models.presets import Preset, presets
    from loraport.inputs.config import RankRule, TransferConfig
    from loraport.merging import Merge, merge
    from loraport.methods.casa import casa
    from loraport.methods.layer import Layer, Update
    from loraport.methods.recipes import find_recipe
    from loraport.methods.settings import CasaSettings, LoraxSettings, ProloraSettings
    from loraport.progress import Progress
    from loraport.sampling.choice.by_config import choose
    from loraport.sampling.choice.choose import Choice
    from loraport.spectral.basis import SingularBasis, decompose
    from loraport.spectral.low_rank import LowRank, factorize
    from loraport.store.bases import BasisCache
    from loraport.store.cache_folder import default_cache
    from loraport.transfers.results import BatchResult, LayerResult, TransferResult
    from loraport.transfers.run import transfer, transfer_many
    from loraport.transfers.state import LoraState, transfer_state

__all__ = [
    "Analysis",
    "AnalyzeConfig",
    "BasisCache",
    "BatchResult",
    "CasaSettings",
    "Checkpoint",
    "Choice",
    "Conversion",
    "Diagnosis",
    "InputError",
    "KeyAccount",
    "Layer",
    "LayerResult",
    "Lora",
    "LoraLayer",
    "LoraState",
    "LoraportError",
    "LoraxSettings",
    "LowRank",
    "Merge",
    "OutputError",
    "Preset",
    "Progress",
    "ProloraSettings",
    "RankRule",
    "SettingsError",
    "SingularBasis",
    "TransferConfig",
    "TransferResult",
    "Update",
    "analyze",
    "casa",
    "choose",
    "convert",
    "decompose",
    "default_cache",
    "diagnose",
    "factorize",
    "find_recipe",
    "inspect",
    "merge",
    "open_checkpoint",
    "presets",
    "read_lora",
    "recommended",
    "transfer",
    "transfer_many",
    "transfer_state",
    "write_lora",
]

_HOMES = {
    "errors": ("InputError", "LoraportError", "OutputError", "SettingsError"),
    "methods.settings": ("CasaSettings", "LoraxSettings", "ProloraSettings"),
    "methods.layer": ("Layer", "Update"),
    "methods.recipes": ("find_recipe",),
    "methods.casa": ("casa",),
    "analysis.results": ("Analysis",),
    "analysis.run": ("analyze",),
    "analysis.inputs": ("AnalyzeConfig",),
    "inputs.config": ("RankRule", "TransferConfig"),
    "transfers.run": ("transfer", "transfer_many"),
    "files.inspect": ("inspect",),
    "files.models.presets": ("Preset", "presets"),
    "sampling.choice.by_config": ("choose",),
    "sampling.choice.choose": ("Choice",),
    "store.cache_folder": ("default_cache",),
    "diagnosis.diagnose": ("diagnose",),
    "diagnosis.recommend": ("recommended",),
    "diagnosis.result": ("Diagnosis",),
    "transfers.state": ("LoraState", "transfer_state"),
    "conversion": ("Conversion", "convert"),
    "merging": ("Merge", "merge"),
    "transfers.results": ("BatchResult", "LayerResult", "TransferResult"),
    "progress": ("Progress",),
    "spectral.basis": ("SingularBasis", "decompose"),
    "spectral.low_rank": ("LowRank", "factorize"),
    "store.bases": ("BasisCache",),
    "files.adapters.lora_layer": ("LoraLayer",),
    "files.lora.key_account": ("KeyAccount",),
    "files.models.checkpoint": ("Checkpoint", "open_checkpoint"),
    "files.lora.read": ("Lora", "read_lora"),
    "files.lora.write": ("write_lora",),
}


def __getattr__(name: str) -> Any:
    if name == "diffusers":  # a module: it imports PyTorch and PEFT
        return import_module("loraport.diffusers")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"loraport.{module}"), name)
    raise AttributeError(f"module 'loraport' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
