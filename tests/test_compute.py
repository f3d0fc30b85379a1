"""What computations need of the machine."""

import torch

from loraport.compute import is_out_of_memory, layer_generator
from loraport.errors import SettingsError


def test_random_numbers_of_a_layer_depend_on_seed_and_name_alone():
    draws = [float(torch.rand(1, generator=layer_generator(*of))) for of in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_a_lack_of_memory_is_told_from_other_errors():
    lacks = [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
             RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]  # fmt: skip
    others = [RuntimeError("CUDA error: an illegal memory access"), SettingsError("out of memory is no model")]
    assert all(map(is_out_of_memory, lacks)) and not any(map(is_out_of_memory, others))
