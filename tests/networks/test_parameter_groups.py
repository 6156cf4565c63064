import pytest

from unseen.errors import InputError
from unseen.networks.parameter_groups import block_of, grouped

NAMES = [
    "embed.weight",
    "layers.0.attention.q.weight",
    "layers.0.norm.bias",
    "layers.1.norm.bias",
    "head.bias",
    "scale",
]


def test_blocks_end_at_the_first_number():
    assert grouped(NAMES) == {
        "embed": NAMES[:1], "layers.0": NAMES[1:3], "layers.1": NAMES[3:4], "head": NAMES[4:5], "scale": NAMES[5:],
    }  # fmt: skip
    assert block_of("3.conv1.weight") == "3"


def test_functions_and_expressions():
    assert grouped(NAMES, lambda name: "norms" if "norm" in name else None) == {"norms": NAMES[2:4]}
    assert grouped(NAMES, {"early": r"^embed|layers\.0", "late": "layers|head"}) == {
        "early": NAMES[:3], "late": NAMES[3:5],
    }  # fmt: skip


def test_empty_groups_are_refused():
    with pytest.raises(InputError, match="group 'mlp'"):
        grouped(NAMES, {"mlp": "fc"})
    with pytest.raises(InputError, match="take in no parameter"):
        grouped(NAMES, lambda name: None)
