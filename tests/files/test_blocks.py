"""Kind, depth, role and block of a layer, by its name alone."""

import pytest

from loraport.files.names.blocks import (
    kind_in_blocks,
    layer_block,
    layer_depth,
    layer_kind,
    layer_role,
    layer_type,
    short_name,
)

UP = "up_blocks.1.attentions.0.transformer_blocks.2"


@pytest.mark.parametrize(
    ("name", "kind", "depth", "role", "block"),
    [
        ("blocks.3.ffn.0", "ffn.0", 3, "blocks.*.ffn.0", "blocks.3"),
        ("head.head", "head.head", None, "head.head", ""),
        ("time_projection.1", "time_projection.1", None, "time_projection.1", ""),
        (f"{UP}.attn1.to_out.0", "attentions.0.transformer_blocks.2.attn1.to_out.0", 1,
         "up_blocks.*.attentions.*.transformer_blocks.*.attn1.to_out.0", UP),
    ],
)  # fmt: skip
def test_a_name_tells_where_a_layer_stands(name, kind, depth, role, block):
    assert (layer_kind(name), layer_depth(name), layer_role(name), layer_block(name)) == (kind, depth, role, block)


def test_only_numbered_blocks_count_as_blocks():
    assert kind_in_blocks("blocks.3.ffn.0") == "ffn.0" and short_name("blocks.3.ffn.0") == "3.ffn.0"
    assert layer_type("blocks.3.ffn.0") == "blocks.ffn.0" and layer_type("head.head") == "head.head"
    for name in ("vace_blocks.3.ffn.0", "blocks.ffn.0", "head.head"):
        assert kind_in_blocks(name) == ""
