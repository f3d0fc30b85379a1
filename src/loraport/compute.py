"""What every computation needs of the machine: device, dtypes, random numbers, threads, and how much memory it took."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from loraport.errors import SettingsError

Job = TypeVar("Job")
Read = TypeVar("Read")
Done = TypeVar("Done")

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


AT_A_TIME = 2
"""Layers in work at once on a processor: more would take more memory than they gain time."""
READERS = 4
"""Threads that read and hash for a card, and layers that are read before their turn: one such thread reads and hashes
1 to 2 GB a second, and what waits is in the form that the files have it."""


def in_parallel(
    jobs: Sequence[Job], read: Callable[[Job], Read], work: Callable[[Job, Read], Done], device: torch.device
) -> Iterator[Done]:
    """Return what `work` makes of each job and of what is read for it, in the order of the jobs.

    On a processor two jobs are in work at a time, each with half of the threads: decompositions hardly use a second
    thread, and threads that share one product wait for each other. On a card, or with one thread, only reading goes on
    beside the work: of the next job, and for a card of the next few.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < AT_A_TIME:
        ahead = 1 if device.type == "cpu" else READERS
        for job, inputs in read_ahead(jobs, read, ahead):
            yield work(job, inputs)
        return

    def do(job: Job) -> Done:
        return work(job, read(job))

    try:
        # OpenMP keeps its number of threads for each calling thread, so each worker sets its share as it starts
        share = threads // AT_A_TIME
        with ThreadPoolExecutor(AT_A_TIME, "loraport-layer", torch.set_num_threads, (share,)) as pool:
            pending: deque[Future[Done]] = deque()
            try:
                for job in jobs:
                    pending.append(pool.submit(do, job))
                    if len(pending) > AT_A_TIME:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what has not begun never does
                raise
    finally:
        torch.set_num_threads(threads)


def read_ahead(jobs: Sequence[Job], read: Callable[[Job], Read], ahead: int = 1) -> Iterator[tuple[Job, Read]]:
    """Return each job with what is read for it; so many of the next ones are read meanwhile, and no more than that."""
    with ThreadPoolExecutor(ahead, thread_name_prefix="loraport-read") as readers:
        pending: deque[Future[Read]] = deque()
        try:
            waiting = iter(jobs)
            pending.extend(readers.submit(read, job) for job in islice(waiting, ahead))
            for job in jobs:
                inputs = pending.popleft().result()
                pending.extend(readers.submit(read, following) for following in islice(waiting, 1))
                yield job, inputs
        finally:
            for future in pending:
                future.cancel()


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
