"""A pair of models with a few LoRAs, and what `transfer` makes of them."""

from pathlib import Path

import pytest

from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import make_family
from tests.workers.runs import COUNT, LAYERS


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    made = make_family(tmp_path_factory.mktemp("pair"), blocks=1)
    for number in range(COUNT):
        path = made.folder / "loras" / f"style{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        factors = tiny.lora_factors(made.source_state, seed=number, rank=2 + number % 2)
        tiny.write_lora(path, {name: pair for name, pair in factors.items() if name.endswith(LAYERS)})
    return made


@pytest.fixture(scope="session")
def alone(family):
    """What `transfer` writes: name -> bytes."""
    written = {}
    for number in range(COUNT):
        lora = str(family.folder / f"loras/style{number}.safetensors")
        config = family.config(f"alone{number}.safetensors", lora=lora, dtype="bf16", cache=None)
        transfer(config)
        written[f"style{number}-casa.safetensors"] = Path(config.output).read_bytes()
    return written
