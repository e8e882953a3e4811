"""Base shapes: names, ranks, wrappers, forgotten dimensions; InfShape."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mup
from mup import ForgottenDimensionWarning, InfDim, InfShape, MuReadout, Role, ShapeError


def mlp(width: int, hidden: int | None = None) -> Any:
    hidden = hidden or width
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, hidden), MuReadout(hidden, 3))


def test_shapes_of_different_rank_are_unequal() -> None:
    short, long = InfShape([InfDim(4, 8)]), InfShape([InfDim(4, 8), InfDim(4, 8)])
    assert short != long and long != short and short != (InfDim(4, 8),)
    assert InfShape([]) != short and InfShape([InfDim(4, 8)]) == short
    with pytest.raises(ShapeError, match="2.weight.*dimensions"):
        mup.set_base_shapes(mlp(8), {**mup.get_shapes(mlp(4)), "2.weight": [3]})


def test_infshape_copies_and_pickles_with_its_declaration() -> None:
    shape = InfShape([InfDim(4, 8), InfDim(6, 36), InfDim(4, 8)])
    shape.declare(Role.HIDDEN, fan_in_dim=1, fan_out_dim=2)
    for other in (copy.deepcopy(shape), pickle.loads(pickle.dumps(shape))):
        assert other == shape and other.role is Role.HIDDEN
        assert other.fanin_fanout() == (shape[1], shape[2]) and other.width_mult() == 6
    with pytest.raises(ShapeError, match="dimension 3"):
        shape.declare(Role.HIDDEN, fan_in_dim=3)


def test_a_size_that_is_not_known_yet_is_an_error() -> None:
    with pytest.raises(ShapeError, match="no size"):
        InfDim(4, None).width_mult()
    with pytest.raises(ShapeError, match="int or an InfDim"):
        mup.zip_infshape([1.5], [3])


# the original mangles names that start with letters of "module."
NAMES = ("module_list.0.weight", "models.weight", "odule.weight", "module.module.weight", "elu.weight")


@pytest.mark.parametrize("inner", NAMES)
@pytest.mark.parametrize("wrapped", ["base", "model"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_removed_exactly(inner: str, wrapped: str, prefix: str) -> None:
    from mup.shape import _zip_infshape_dict

    names = [inner, "out.bias"]
    base = {(prefix if wrapped == "base" else "") + name: [4] for name in names}
    shapes = {(prefix if wrapped == "model" else "") + name: [8] for name in names}
    zipped = _zip_infshape_dict(base, shapes)
    assert zipped == {name: InfShape([InfDim(4, 8)]) for name in shapes}


def test_data_parallel_model_and_a_submodule_named_module() -> None:
    model: Any = mup.set_base_shapes(nn.DataParallel(mlp(32)), mlp(4), delta=mlp(8))
    torch.testing.assert_close(model(torch.ones(2, 5)), model.module(torch.ones(2, 5)))
    mup.set_base_shapes(mlp(32), nn.DataParallel(mlp(4)), delta=nn.DataParallel(mlp(8)))
    really = lambda w: nn.ModuleDict({"module": mlp(w)})  # noqa: E731
    shapes = mup.get_infshapes(mup.set_base_shapes(really(32), really(4), delta=really(8)))
    assert all(name.startswith("module.") for name in shapes)


def test_names_that_exist_on_one_side_are_listed() -> None:
    with pytest.raises(ShapeError, match=r"only in the base \['b'\], only in the model \['c'\]"):
        mup.zip_infshapes({"a": [1], "b": [1]}, {"a": [1], "c": [1]})


def test_a_dimension_forgotten_in_delta_is_reported_by_name(tmp_path: Path) -> None:
    with pytest.warns(ForgottenDimensionWarning, match=r"1\.weight \(dimension 0: 6 in the base, 24 here\)"):
        model: Any = mup.set_base_shapes(mlp(32, 24), mlp(4, 6), delta=mlp(8, 6), do_assert=False)
    assert model[1].weight.infshape.forgotten() == [0]
    path = tmp_path / "x.bsh"  # base and delta are known only from a file
    mup.make_base_shapes(mlp(4, 6), mlp(8, 6), path)
    with pytest.warns(ForgottenDimensionWarning, match=r"1\.weight \(dimension 0: 6 in the base, 24 here\)"):
        mup.set_base_shapes(mlp(32, 24), path, do_assert=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mup.set_base_shapes(mlp(32, 24), mlp(4, 6), delta=mlp(8, 12))


def test_pathlib_paths_everywhere(tmp_path: Path) -> None:
    made = mup.make_base_shapes(mlp(4), mlp(8), tmp_path / "a.bsh")
    assert mup.load_base_shapes(tmp_path / "a.bsh") == made
    model = mup.set_base_shapes(mlp(16), tmp_path / "a.bsh", savefile=tmp_path / "b.bsh")
    mup.save_base_shapes(model, tmp_path / "c.bsh", comments=["kept"])
    assert mup.load_base_shapes(tmp_path / "b.bsh") == mup.load_base_shapes(tmp_path / "c.bsh") == made
    assert "kept" in mup.read_comments(tmp_path / "c.bsh")


def test_get_shapes_of_a_model_is_used() -> None:
    class Own(nn.Linear):
        def get_shapes(self) -> dict[str, list[int]]:
            return {"weight": [self.out_features * 2, self.in_features], "bias": [self.out_features * 2]}

    make = lambda w: Own(w, w)  # noqa: E731
    model: Any = mup.set_base_shapes(make(16), make(4), delta=make(8))
    assert model.weight.infshape == InfShape([InfDim(8, 32), InfDim(4, 16)])


@pytest.mark.parametrize("wrong", [3, ["a"], 4.5])
def test_shapes_come_from_models_dicts_and_paths(wrong: object) -> None:
    with pytest.raises(ShapeError, match="model, a dict or the path"):
        mup.zip_infshapes(wrong, {"a": [1]})  # type: ignore[arg-type]


def test_missing_infshapes_are_named() -> None:
    with pytest.raises(ShapeError, match="'0.weight' has no infshape"):
        mup.get_infshapes(mlp(4))
    with pytest.raises(ShapeError, match="infshapes has no entry for the parameter '0.bias'"):
        mup.apply_infshapes(mlp(4), {"0.weight": InfShape([InfDim(None, 4), InfDim(None, 5)])})


def test_the_base_model_can_be_on_the_meta_device() -> None:
    with torch.device("meta"):
        base, delta = mlp(4), mlp(8)
    model: Any = mup.set_base_shapes(mlp(16), base, delta=delta)
    assert model[2].width_mult() == 4


# --- layers that map a width to a finite dimension ---


class _Tied(nn.Module):
    def __init__(self, width: int, kind: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        if kind is mup.MuSharedReadout:
            self.readout = kind(self.embedding.weight, bias=False)
        else:
            self.readout = kind(width, 7, bias=False)
            self.readout.weight = self.embedding.weight


def test_a_plain_linear_tied_to_an_embedding_is_refused() -> None:
    set_shapes = lambda kind: mup.set_base_shapes(_Tied(16, kind), _Tied(4, kind), delta=_Tied(8, kind))  # noqa: E731
    with pytest.raises(mup.ShapeError, match=r"readout shares the weight of an embedding.*MuSharedReadout"):
        set_shapes(nn.Linear)
    for kind in (mup.MuSharedReadout, mup.MuReadout):
        set_shapes(kind)


@pytest.mark.parametrize(
    ("plain", "readout"), [(nn.Conv2d, "MuOutConv2d"), (nn.ConvTranspose1d, "MuOutConvTranspose1d")]
)
def test_a_plain_convolution_to_a_finite_dimension_is_refused(plain: Any, readout: str) -> None:
    def set_shapes(kind: Any, declared: bool = False) -> None:
        models = [nn.Sequential(kind(3, width, 3), kind(width, 2, 3)) for width in (16, 4, 8)]
        if declared:
            mup.declare(models[0][1], "weight", "hidden")
        mup.set_base_shapes(models[0], models[1], delta=models[2])

    with pytest.raises(mup.ShapeError, match=rf"^1 maps a width to a finite dimension .* make it a {readout}, "):
        set_shapes(plain)
    set_shapes(getattr(mup, readout))
    set_shapes(plain, declared=True)


def test_a_depthwise_convolution_is_no_readout() -> None:
    make = lambda width: nn.Sequential(nn.Conv2d(width, width, 3, groups=width))  # noqa: E731
    model = mup.set_base_shapes(make(16), make(4), delta=make(8))
    assert [row.role for row in mup.audit(model).rows] == ["input", "vector"]
