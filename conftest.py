"""Shapes in signatures are checked while tests run, and only then; no test touches the user's cache or the network."""

import gc
import os
import sys
from collections import Counter
from itertools import count

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of the many processes that tests start compiles it all anew
sys.dont_write_bytecode = False
CHECKED = [
    *(
        "loraport.spectral",
        "loraport.methods",
        "loraport.parametrizations",
        "loraport.analysis.measures",
        "loraport.analysis.layer_statistics",
    ),
    *("loraport.analysis.probes", "loraport.sampling.statistics", "loraport.sampling.calibration.least_squares"),
    *("loraport.sampling.calibration.gains", "loraport.sampling.calibration.residual_writers"),
    *("loraport.diagnosis.look", "loraport.parametrizations.curve"),
    *(f"loraport.evaluation.metrics.{name}" for name in "appearance efficientnet fidelity flow pixels".split()),
    *(f"loraport.evaluation.networks.{name}" for name in "clip clip_towers csd dinov2 discrepancy hpsv2 lpips".split()),
    *(f"loraport.evaluation.networks.{name}" for name in "musiq pictures texts videoalign videoalign_input".split()),
    *("loraport.store.packing", "loraport.store.routings"),
    *("loraport.files.formats.rounding", "loraport.files.models.weight"),
]
"""Rooms and modules with shapes in their signatures."""
install_import_hook(CHECKED, "beartype.beartype")

import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Garbage is looked for in what a module's tests make, not in all of torch: the program collects between models."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cache_names(tmp_path_factory):
    """Names of cache folders, which the program makes when it needs one: pytest's numbered folders cost more each."""
    folder = tmp_path_factory.mktemp("caches")
    return (str(folder / str(number)) for number in count())


@pytest.fixture(autouse=True)
def own_cache(cache_names, monkeypatch):
    """Each test has a cache folder of its own."""
    monkeypatch.setenv("LORAPORT_CACHE", next(cache_names))


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: more threads only get in each other's way."""
    import torch  # here, since the process that only hands tests to others reads this file first

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Of a table marked `sampled(n)` every n-th case is quick, the others are slow."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            table = item.nodeid.partition("[")[0]
            if seen[table] % mark.args[0]:
                item.add_marker("slow")
            seen[table] += 1
