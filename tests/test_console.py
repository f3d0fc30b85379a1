"""What a person sees: dropped keys by their reasons, a guard's lines in the columns of the others."""

import pytest

from loraport import console

DROPPED = [
    [f"blocks.{i}.ffn.0.{side}", f"subspaces overlap by 0.{i}, less than 0.8"] for i in range(9) for side in "AB"
]
OTHERS = [["text.alpha", "an alpha without factors"], ["a.diff_b", "no such layer"], ["b.diff_b", "no such layer"]]


def printed(capsys, dropped, **options):
    console.print_dropped(dropped, **{"verbose": False, **options})
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()


def test_a_line_for_each_reason_with_two_keys(capsys):
    assert printed(capsys, DROPPED + OTHERS) == [
        "loraport: dropped 18 keys (blocks.0.ffn.0.A, blocks.0.ffn.0.B, …; -v lists all): "
        "subspaces overlap by 0.0, less than 0.8",
        "loraport: dropped text.alpha: an alpha without factors",
        "loraport: dropped 2 keys (a.diff_b, b.diff_b): no such layer",
    ]
    assert printed(capsys, OTHERS[:1], where="out: ") == ["loraport: out: dropped text.alpha: an alpha without factors"]
    assert printed(capsys, []) == []


def test_verbose_lists_each_key_with_its_own_reason(capsys):
    wanted = [f"loraport: dropped {key}: {reason}" for key, reason in DROPPED + OTHERS]
    assert printed(capsys, DROPPED + OTHERS, verbose=True) == wanted
    assert len(printed(capsys, [*OTHERS[:1], ["text.alpha", "another reason"]], verbose=True)) == 2


@pytest.mark.parametrize("names", [["wrote", "guard"], ["wrote", "subspaces", "guard"]])
def test_values_stand_in_one_column(names, capsys):
    console.print_facts(dict.fromkeys(names, "value"), json=False)
    lines = capsys.readouterr().out.splitlines()
    assert {line.index("value") for line in lines} == {max(map(len, names)) + 2}
