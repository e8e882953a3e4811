"""Messages stay readable whatever a damaged file puts into them."""

from __future__ import annotations

import pytest

from megatron.errors import DataError, UserError
from megatron.neox_arguments import NeoXArgs


def test_long_words_are_cut():
    word = "a" * 300 + "b" * 200
    assert str(DataError(f"file: {word} is wrong")) == f"file: {'a' * 200}...{'b' * 50} is wrong"
    assert str(DataError("x" * 499)) == "x" * 499
    assert len(str(DataError("word " * 10_000))) == 20_000


@pytest.mark.parametrize("name", ["{" * 300 + "/dev/zero", "a/" * 3000, "\0"])
def test_a_path_that_no_file_can_have(name):
    with pytest.raises(UserError, match="expected the path of a configuration file"):
        NeoXArgs.consume_neox_args(input_args=[name])
