"""What these tests share: a small heap, since the program collects garbage between models, and here that is torch."""

import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def small_heap():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
