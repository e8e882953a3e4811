"""Derived sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.sizes import BatchSizeError, batch_sizes, ffn_hidden_size

size = st.integers(1, 64)


@pytest.mark.parametrize(
    ("arguments", "width"),
    [
        ((4096, 32768, None, "swiglu", 256), 11008),  # LLaMA 7B
        ((5120, 40960, None, "swiglu", 256), 13824),  # LLaMA 13B
        ((6656, 53248, None, "swiglu", 256), 17920),  # LLaMA 30B
        ((8192, 65536, None, "swiglu", 256), 22016),  # LLaMA 65B
        ((8192, 86016, None, "swiglu", 256), 28672),  # Llama 2 70B
        ((4096, 43008, None, "swiglu", 256), 14336),  # Mistral 7B
        ((768, None, None, "gelu", 1), 3072),
        ((768, None, 3.5, "gelu", 1), 2688),
        ((768, 1000, None, "relu", 64), 1024),
        ((768, None, None, "geglu", 1), 1024),
    ],
)
def test_ffn_hidden_size(arguments, width):
    assert ffn_hidden_size(*arguments) == width


@given(size, size, st.sampled_from(["gelu", "swiglu"]))
def test_ffn_width_is_the_next_multiple(hidden, multiple, activation):
    exact = ffn_hidden_size(hidden, activation=activation)
    width = ffn_hidden_size(hidden, activation=activation, mlp_multiple_of=multiple)
    assert width % multiple == 0 and exact <= width < exact + multiple


@given(size, size, size, st.integers(0, 3))
def test_any_one_of_the_four_is_recovered(micro, steps, dp, missing):
    full = [micro * steps * dp, micro, steps, dp]
    given_sizes = [None if i == missing else value for i, value in enumerate(full)]
    assert batch_sizes(*given_sizes) == tuple(full)


@given(size, size, size, st.integers(1, 10_000))
def test_the_suggested_train_batch_size_agrees(micro, steps, dp, train):
    if train == micro * steps * dp:
        return
    with pytest.raises(BatchSizeError, match=f"use train_batch_size {micro * steps * dp},"):
        batch_sizes(train, micro, steps, dp)


@given(size, size, st.integers(1, 10_000))
def test_an_indivisible_train_batch_names_divisible_neighbours(micro, dp, train):
    if train % (micro * dp) == 0:
        assert batch_sizes(train, micro, None, dp) == (train, micro, train // (micro * dp), dp)
        return
    with pytest.raises(BatchSizeError) as error:
        batch_sizes(train, micro, None, dp)
    offers = str(error.value).split("; use ")[1].split(" or ")
    for offer in map(int, offers):
        assert batch_sizes(offer, micro, None, dp)


def test_missing_sizes_default_to_one():
    assert batch_sizes(None, 4, None, None) == (4, 4, 1, 1)
    assert batch_sizes(12, None, None, 3) == (12, 4, 1, 3)
    assert batch_sizes(None, None, 2, 3) is None
