"""`--sampling KEY=VALUE`: the same keys, kinds and defaults as the options of `score`."""

import pytest

from loraport.cli.guard import parse_sampling
from loraport.cli.pairs import Sampling
from loraport.errors import SettingsError


def test_values_have_the_kind_of_their_default():
    flags = ["target-steps=3", "source-guidance=2.5", "size=64x64", "offload=yes", "prompts=list.txt"]
    found = parse_sampling(flags)
    assert found == Sampling("list.txt", size="64x64", source_guidance=2.5, target_steps=3, offload=True)
    assert parse_sampling(["offload=no"]) == parse_sampling([]) == Sampling()


@pytest.mark.parametrize("flag", ["steps=3", "device=cpu", "target-steps=three", "target_steps=3"])
def test_what_is_no_key_or_no_value_is_refused(flag):
    with pytest.raises(SettingsError):
        parse_sampling([flag])
