"""What every computation needs of the machine: device, dtypes, random numbers, and how much memory it took."""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import Tensor

from loraport.errors import LoraportError, SettingsError

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """Return the device to compute on; `auto` takes a CUDA card if there is one. Raises SettingsError for any other."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:0 or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA cards")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(f"device {name!r} is not there: PyTorch sees no Apple graphics; use cpu")
    return device


ON_PROCESSOR = (
    "the weights are computed on the processor: singular vectors, norms and decisions are made in double precision, "
    "which Apple's graphics has not"
)
"""Said where `mps` was asked for something that is not sampled."""


def weights_device(name: str) -> torch.device:
    """Return the device on which layers of weights are computed: the processor in place of Apple's graphics.

    Bases, routing, arbitration, factors and norms all sum or decompose in float64, so little would be left for it.
    Raises SettingsError as `find_device`.
    """
    device = find_device(name)
    return torch.device("cpu") if device.type == "mps" else device


def in_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on its device, or on the processor where that has no such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Return the random numbers of one layer, from seed and name: the order of work and a restart change nothing."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return not isinstance(error, LoraportError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held, mapped file pages included; 0 where it is unknown."""
    try:
        import resource
    except ImportError:
        return _peak_working_set()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_working_set() -> int:
    """Return the same on Windows: PeakWorkingSetSize of PROCESS_MEMORY_COUNTERS."""
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", ctypes.c_uint32), ("faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in ("peak", *(f"other{number}" for number in range(7)))),
        ]  # fmt: skip

    libraries, counters = getattr(ctypes, "windll", None), Counters()
    if libraries is None:
        return 0
    kernel = libraries.kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    here, size = kernel.GetCurrentProcess(), ctypes.sizeof(counters)
    return int(counters.peak) if kernel.K32GetProcessMemoryInfo(here, ctypes.byref(counters), size) else 0
