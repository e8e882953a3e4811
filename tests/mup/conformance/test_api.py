"""Behaviour of the `mup` API in both ours and the original 1.0.0. test_oracle.py runs this file under the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mup
import mup.init as mup_init
from mup.infshape import InfDim, InfShape, zip_infshape


def mlp(width: int) -> Any:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), mup.MuReadout(width, 3))


def in_mup(width: int, base: int = 4) -> Any:
    torch.manual_seed(0)
    return mup.set_base_shapes(mlp(width), mlp(base), delta=mlp(2 * base))


def test_infdim() -> None:
    width, finite = InfDim(4, 16), InfDim(None, 10)
    assert (width.isinf(), width.width_mult()) == (True, 4)
    assert (finite.isinf(), finite.width_mult()) == (False, 1)
    assert (repr(width), str(finite)) == ("InfDim(4, 16)", "FinDim(10)")
    assert width == InfDim(4, 16) and width != finite


def test_infshape_of_a_matrix() -> None:
    shape = InfShape([InfDim(4, 8), InfDim(4, 16)])
    assert shape.ninf() == 2 and shape.width_mult() == 4 and shape.main_idx == 1
    assert shape.fanin_fanout() == (shape[1], shape[0])
    assert shape.fanin_fanout_mult_ratio() == 2
    assert (shape.base_shape(), shape.shape()) == ([4, 4], [8, 16])
    assert InfShape.deserialize(shape.serialize()) == shape


def test_main_can_be_set_by_hand() -> None:
    shape = InfShape([InfDim(4, 8), InfDim(4, 16)])
    shape.main_idx, shape.main = 0, shape[0]
    assert shape.width_mult() == 2


def test_infshape_without_width_has_multiplier_one() -> None:
    assert InfShape([InfDim(None, 3)]).width_mult() == 1
    with pytest.raises((AssertionError, ValueError)):
        InfShape([InfDim(None, 3)]).fanin_fanout()
    with pytest.raises(ValueError):
        InfShape([3])  # type: ignore[list-item]


def test_zip_infshape() -> None:
    assert zip_infshape([64, 128], [32, 128]).base_shape() == [64, None]
    assert zip_infshape([64, 128], [32, 128], fin_if_same=False).base_shape() == [64, 128]
    zipped = zip_infshape([InfDim(64, None), InfDim(None, None)], [64, 9])
    assert zipped == InfShape([InfDim(64, 64), InfDim(None, 9)])


def test_names_that_differ_are_an_error() -> None:
    with pytest.raises(AssertionError, match="extra|only"):
        mup.set_base_shapes(mlp(8), nn.Sequential(nn.Linear(5, 4)))


def test_clear_dims_copies() -> None:
    shapes = mup.zip_infshapes(mlp(4), mlp(8))
    cleared = mup.clear_dims(shapes)
    assert all(dim.dim is None for shape in cleared.values() for dim in shape)
    assert all(dim.dim is not None for shape in shapes.values() for dim in shape)


def test_savefile_and_a_model_from_it(tmp_path) -> None:
    path = str(tmp_path / "a.bsh")
    made = mup.make_base_shapes(mlp(4), mlp(8), path)
    assert mup.load_base_shapes(path) == made
    from_file = mup.set_base_shapes(mlp(16), path)
    assert mup.get_infshapes(from_file) == mup.get_infshapes(in_mup(16))
    mup.set_base_shapes(mlp(16), mlp(4), delta=mlp(8), savefile=str(tmp_path / "b.bsh"))
    assert mup.load_base_shapes(str(tmp_path / "b.bsh")) == made


def test_base_none_is_the_model_itself() -> None:
    model = mup.set_base_shapes(mlp(16), None)
    assert all(shape.ninf() == 0 for shape in mup.get_infshapes(model).values())


def test_a_plain_linear_from_a_width_to_a_finite_dimension_raises() -> None:
    make = lambda w: nn.Sequential(nn.Linear(5, w), nn.Linear(w, 3))  # noqa: E731
    with pytest.raises(AssertionError, match="MuReadout"):
        mup.set_base_shapes(make(16), make(4), delta=make(8))
    mup.assert_hidden_size_inf(in_mup(16))


def test_readout_divides_its_input_and_its_init_is_constant_in_width() -> None:
    model = in_mup(64)
    readout = model[-1]
    assert readout.width_mult() == 16
    x = torch.randn(2, 64)
    torch.testing.assert_close(
        readout(x),
        nn.functional.linear(x, readout.weight, readout.bias)
        - (nn.functional.linear(x, readout.weight) * (1 - 1 / 16)),
    )
    largest = float(readout.weight.detach().abs().max())
    assert 64**-0.5 < largest <= 4 * 64**-0.5


def test_output_mult_and_zero_init() -> None:
    readout = mup.MuReadout(4, 3, readout_zero_init=True, output_mult=2.0)
    assert not readout.weight.any() and not readout.bias.any()
    model: Any = nn.Sequential(nn.Linear(5, 4), mup.MuReadout(4, 3, bias=False, output_mult=2.0))
    mup.set_base_shapes(model, None)
    x = torch.randn(2, 4)
    torch.testing.assert_close(model[1](x), 2 * x @ model[1].weight.T)


def test_a_second_rescale_raises() -> None:
    model = in_mup(8)
    with pytest.raises(RuntimeError):
        model[-1]._rescale_parameters()
    with pytest.raises(RuntimeError):
        mup.rescale_linear_bias(model[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda p: mup_init.ones_(p),
        lambda p: mup_init.uniform_(p, 0, 1),
        lambda p: mup_init.normal_(p, mean=1.0),
        lambda p: mup_init.eye_(p),
    ],
)
def test_hidden_matrices_need_mean_zero(call) -> None:
    model = in_mup(16)
    with pytest.raises(AssertionError):
        call(model[2].weight)


def test_vectors_can_have_any_mean() -> None:
    gain = in_mup(16)[2].bias
    assert bool((mup_init.ones_(gain) == 1).all())
    mup_init.uniform_(gain, 0, 1)
    assert float(gain.detach().min()) >= 0


def test_init_needs_base_shapes() -> None:
    with pytest.raises(AssertionError, match="set_base_shapes"):
        mup_init.uniform_(nn.Parameter(torch.zeros(3, 3)), -1, 1)


def test_optimizer_needs_base_shapes() -> None:
    with pytest.raises(AssertionError, match="set_base_shapes"):
        mup.MuAdam(mlp(4).parameters(), lr=0.1)


def test_impl_gets_the_keywords() -> None:
    optimizer = mup.MuSGD(in_mup(16).parameters(), impl=torch.optim.ASGD, lr=0.1, alpha=0.5)
    assert isinstance(optimizer, torch.optim.ASGD) and optimizer.defaults["alpha"] == 0.5
    assert isinstance(mup.MuAdam(in_mup(16).parameters(), impl=torch.optim.RMSprop, lr=0.1), torch.optim.RMSprop)


def test_a_shared_readout_without_bias_shares_the_weight() -> None:
    embedding = nn.Embedding(6, 6)
    assert mup.MuSharedReadout(embedding.weight, bias=False).weight is embedding.weight
