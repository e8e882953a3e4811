"""Records of activations: the DataFrame API of the original, unusual modules, custom steps, and freed models."""

from __future__ import annotations

import math
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mup
from mup import MuAdam, MuReadout
from mup.coord_check import (
    FDICT,
    convert_fdict,
    coord_records,
    cov,
    covoffdiag,
    example_plot_coord_check,
    get_coord_data,
    plot_coord_data,
    verdict,
)
from mup.records import Coordinates

torch.set_num_threads(1)
WIDTHS = (8, 16, 32, 64)


def mlp(width: int, zero: bool = True) -> Any:
    return nn.Sequential(
        nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), MuReadout(width, 4, readout_zero_init=zero)
    )


def lazy(width: int) -> Any:
    return lambda: mup.set_base_shapes(mlp(width), mlp(8), delta=mlp(16))


MODELS = {w: lazy(w) for w in WIDTHS}
BATCH = (torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
FLAT = (BATCH[0].flatten(1), BATCH[1])


class Odd(nn.Module):
    """A module with submodules that return None, tuples with None, dicts and integers."""

    class Side(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            return None

    class Many(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x, None, {"a": [x + 1, 3], "long": torch.arange(3)}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.side, self.many, self.first = self.Side(), self.Many(), nn.Linear(12, width)
        self.out = MuReadout(width, 4, readout_zero_init=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        self.side(h)
        self.many(h)
        return self.out(self.many(h)[0])


def test_statistics() -> None:
    x = torch.randn(3, 4, 5)
    assert float(FDICT["l1"](x)) == pytest.approx(float(x.abs().mean()))
    assert float(FDICT["l2"](x)) == pytest.approx(float(x.norm() / x.numel() ** 0.5))
    rows = x.reshape(12, 5)
    torch.testing.assert_close(cov(x), rows @ rows.T / 5)
    assert cov(torch.tensor(3.0)).tolist() == [[9.0]] and covoffdiag(x).shape == (12 * 11,)
    assert {name: math.isfinite(float(f(x))) for name, f in FDICT.items()} == dict.fromkeys(FDICT, True)
    own = convert_fdict({"mine": torch.max, "l1": "l1"})
    assert own["mine"] is torch.max and own["l1"] is FDICT["l1"]


def test_dataframe_of_the_original() -> None:
    df = get_coord_data(
        MODELS, [BATCH], optimizer="adam", lr=0.01, flatten_input=True, nsteps=2, nseeds=3, show_progress=False,
        output_fdict={"l1": "l1", "std": torch.std}, input_fdict={"l2": "l2"}, param_fdict={"l1": "l1"},
        filter_module_by_name=lambda name: name != "1", cuda=False,
    )  # fmt: skip
    assert isinstance(df, pd.DataFrame)
    assert list(df.columns[:4]) == ["width", "module", "t", "seed"] and {"optimizer", "lr"} <= set(df.columns)
    assert set(df["module"]) >= {"0", "2", "3", "", "0:in[0]", "3:param[weight]", ":param[0.bias]"}
    assert not df["module"].str.startswith("1").any()
    assert set(df["t"]) == {1, 2} and set(df["width"]) == set(WIDTHS) and set(df["seed"]) == {0, 1, 2}
    assert len(df[(df.module == "0") & (df.width == 8)]) == 2 * 3


def test_coordinate_check_of_the_original_is_judged() -> None:
    def check(mup_: bool) -> Any:
        make = MODELS if mup_ else {w: (lambda w=w: mup.set_base_shapes(mlp(w), None)) for w in WIDTHS}
        return get_coord_data(
            make, [FLAT], optimizer="adam", lr=0.05, mup=mup_, nsteps=4, nseeds=3, show_progress=False,
            filter_module_by_name=lambda name: name == "3",
        )  # fmt: skip

    result = verdict(check(True), reference=check(False))
    assert result.passed and {row.statistic for row in result.rows} == {"l1"}, result.table()
    with pytest.raises(ValueError, match="column seed"):
        verdict(check(True).drop(columns="seed"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("in_mup", [True, False])
def test_named_optimizers(optimizer: str, in_mup: bool) -> None:
    df = get_coord_data(
        {8: MODELS[8]}, [FLAT], optimizer=optimizer, mup=in_mup, nsteps=1, show_progress=True,
        filter_trainable_by_name=lambda name: name.startswith("3"),
    )  # fmt: skip
    assert set(df["lr"]) == {0.1 if optimizer == "sgd" else 1e-3}
    with pytest.raises(ValueError, match="adagrad"):
        get_coord_data({8: MODELS[8]}, [FLAT], optimizer="adagrad")


@pytest.mark.parametrize("lossfn", ["xent", "mse", "nll", "l1", lambda out, target: out.sum()])
def test_losses(lossfn: Any) -> None:
    df = get_coord_data(
        {8: MODELS[8]}, [FLAT], nsteps=2, lossfn=lossfn, one_hot_target=lossfn == "l1", show_progress=False,
        flatten_output=True, fix_data=True,
    )  # fmt: skip
    assert np.isfinite(df["l1"]).all()
    with pytest.raises(ValueError, match="huber"):
        get_coord_data({8: MODELS[8]}, [FLAT], lossfn="huber", show_progress=False)


def test_dict_models_and_several_batches() -> None:
    class WithLoss(nn.Module):
        def __init__(self, as_dict: bool) -> None:
            super().__init__()
            self.net, self.as_dict = MODELS[8](), as_dict

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            loss = F.cross_entropy(self.net(x), y)
            return {"my_loss": loss} if self.as_dict else (loss,)

    batches = [{"x": FLAT[0] + i, "y": FLAT[1]} for i in range(5)]
    for as_dict in (True, False):
        df = get_coord_data(
            {8: partial(WithLoss, as_dict)}, batches, optimizer=lambda m: MuAdam(m, lr=0.1),
            nsteps=3, dict_in_out=True, output_name="my_loss", fix_data=False, show_progress=False,
        )  # fmt: skip
        assert set(df["t"]) == {1, 2, 3}
        assert (":out[my_loss]" if as_dict else ":out[0]") in set(df["module"])
        first = df[df.module == "net.0"]["l1"].tolist()
        assert len(set(first)) == 3


def test_both_apis_record_odd_modules() -> None:
    make = {w: (lambda w=w: mup.set_base_shapes(Odd(w), Odd(8), delta=Odd(16))) for w in WIDTHS}
    df = get_coord_data(make, [FLAT], show_progress=False, nsteps=1)
    assert {"many:out[0]", "many:out[2][a][0]"} <= set(df["module"]) and "side" not in set(df["module"])
    records = coord_records(make, FLAT, lambda m: MuAdam(m, lr=1e-2), steps=(1,))
    modules = {r["module"] for r in records}
    assert {"many[0]", "many[0]#1", "many[2][a][0]", "first", ""} <= modules
    assert verdict(records).passed


def test_records() -> None:
    records = coord_records(MODELS, FLAT, lambda m: MuAdam(m, lr=1e-2), steps=(1, 3), seeds=(5, 6), axis="size")
    assert {(r["statistic"], r["t"]) for r in records} == {
        ("mean_abs", 0),
        ("rms_delta", 1),
        ("rms_delta", 3),
    }
    assert {r["seed"] for r in records} == {5, 6} and {r["size"] for r in records} == set(WIDTHS)
    torch.manual_seed(5)
    model = MODELS[8]()
    x0 = model[0](FLAT[0])
    [first] = [r for r in records if (r["module"], r["size"], r["seed"], r["t"]) == ("0", 8, 5, 0)]
    assert first["value"] == pytest.approx(float(x0.detach().abs().mean()))
    optimizer = MuAdam(model, lr=1e-2)
    F.cross_entropy(model(FLAT[0]), FLAT[1]).backward()
    optimizer.step()
    [delta] = [r for r in records if (r["module"], r["size"], r["seed"], r["t"]) == ("3", 8, 5, 1)]
    x1 = model(FLAT[0])
    assert delta["value"] == pytest.approx(float(x1.detach().square().mean().sqrt()))  # the readout starts at zero


@pytest.mark.parametrize("tied", [True, False])
def test_outputs_are_recognised_by_role_and_not_by_name(tied: bool) -> None:
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.readout = nn.Embedding(5, width)  # a misleading name
            self.embed = mup.MuSharedReadout(self.readout.weight) if tied else nn.Linear(width, 3)
            if not tied:
                mup.declare(self.embed, role="output")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.embed(self.readout(x))

    coordinates = Coordinates(
        mup.set_base_shapes(Net(16), Net(4), delta=Net(8)), lambda: coordinates.model(torch.arange(5))
    )
    assert {r["module"]: r["may_vanish"] for r in coordinates.measure(0)} == {"readout": False, "embed": True, "": True}
    assert not any(r["may_vanish"] for r in coordinates.measure(1))


def test_kinds_are_averaged_and_extra_tensors_are_recorded() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 3)
    coordinates = Coordinates(
        model, lambda: model(x), keep=bool, kind=lambda name: "any" if name.isdigit() else name,
        extra=lambda name, module, inputs: [(f"in.{name}", inputs[0])],
    )  # fmt: skip
    start = [model[0](x).detach(), model(x).detach()]
    first = {r["module"]: r["value"] for r in coordinates.measure(0)}
    assert first["any"] == pytest.approx(float(sum(y.abs().mean() for y in start)) / 2)
    assert first["in.0"] == pytest.approx(float(x.abs().mean())) and "" not in first
    with torch.no_grad():
        model[0].bias.add_(1.0)
    then = {r["module"]: r["value"] for r in coordinates.measure(2)}
    changes = [1.0, float((model(x).detach() - start[1]).square().mean())]
    assert then["any"] == pytest.approx((sum(changes) / 2) ** 0.5, rel=1e-5) and then["in.0"] == 0


def test_custom_steps_are_used_and_models_are_freed() -> None:
    alive: list[weakref.ref[nn.Module]] = []
    steps: list[int] = []

    def build(width: int) -> Any:
        assert all(ref() is None for ref in alive), "more than one model exists at a time"
        model = MODELS[width]()
        alive.append(weakref.ref(model))
        return model

    def own_step(model: nn.Module, optimizer: Any, batch: Any) -> None:
        steps.append(1)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    models = {w: (lambda w=w: build(w)) for w in WIDTHS}
    records = coord_records(
        models,
        FLAT[0],
        lambda m: MuAdam(m, lr=1e-2),
        train_step=own_step,
        forward=lambda m, x: m(x),
        steps=(2,),
        seeds=(0,),
    )
    assert len(steps) == 2 * len(WIDTHS) and len(records) > 0
    df = get_coord_data(models, [FLAT[0]], train_step=own_step, nsteps=2, show_progress=False)
    assert len(steps) == 4 * len(WIDTHS) and set(df["t"]) == {1, 2}
    assert all(ref() is None for ref in alive)


def test_hooks_are_removed_when_a_step_fails() -> None:
    model = MODELS[8]()

    def fail(model: nn.Module, optimizer: Any, batch: Any) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        get_coord_data({8: lambda: model}, [FLAT], train_step=fail, show_progress=False)
    assert not any(module._forward_hooks for module in model.modules())


def test_measuring_does_not_change_training() -> None:
    def final(steps: tuple[int, ...]) -> torch.Tensor:
        kept: list[Any] = []

        def with_dropout() -> Any:
            kept.append(nn.Sequential(MODELS[8](), nn.Dropout(0.5)))
            return kept[-1]

        coord_records({8: with_dropout}, FLAT, lambda m: MuAdam(m, lr=1e-2), steps=steps, seeds=(0,))
        return kept[0][0][0].weight.detach()

    assert torch.equal(final((1, 2, 3)), final((3,)))


@pytest.mark.parametrize(
    ("arch", "in_mup", "as_dict", "batchnorm", "init"),
    [("mlp", True, True, False, "default"), ("mlp", False, False, False, "kaiming_fan_in_normal"),
     ("cnn", True, False, True, "kaiming_fan_out_uniform"), ("cnn", False, True, False, "default")],
)  # fmt: skip
def test_example_plot(
    tmp_path: Path,
    arch: str,
    in_mup: bool,
    as_dict: bool,
    batchnorm: bool,
    init: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figure = example_plot_coord_check(
        arch, "adam", widths=[8, 16], mup=in_mup, nsteps=1, nseeds=1, plotdir=tmp_path, dict_in_out=as_dict,
        batchnorm=batchnorm, init=init, legend=False,
    )  # fmt: skip
    assert len(figure.axes) == 1 and "saved to" in capsys.readouterr().out
    kind = "mup" if in_mup else "sp"
    assert (tmp_path / f"{kind}_{arch}_adam_lr0.001_nseeds1_bn{int(batchnorm)}_coord.png").exists()


def test_example_needs_a_known_arch_and_init() -> None:
    with pytest.raises(ValueError, match="resnet"):
        example_plot_coord_check("resnet", widths=[8])
    with pytest.raises(ValueError, match="init: expected .* got 'x'"):
        example_plot_coord_check("mlp", widths=[8], init="x")


def test_plot_coord_data_filters_and_labels(tmp_path: Path) -> None:
    df = get_coord_data(MODELS, [FLAT], nsteps=2, show_progress=False, nseeds=2)
    before = df.copy()
    figure = plot_coord_data(df, save_to=tmp_path / "a.png", suptitle="title", name_contains="[02]", face_color="grey")
    assert (tmp_path / "a.png").exists() and figure.get_suptitle() == "title"
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["0", "2"]
    assert figure.axes[0].get_xscale() == "log" and df.equals(before)
    other = plot_coord_data(df, name_not_contains="0", loglog=False, legend=False)
    assert other.axes[0].get_legend() is None and other.axes[0].get_xscale() == "linear"
    assert len(other.axes[0].get_lines()) == 3


def test_missing_optional_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        mup.plot_verdict([], None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(get_coord_data({8: MODELS[8]}, [FLAT], nsteps=1, show_progress=True))
