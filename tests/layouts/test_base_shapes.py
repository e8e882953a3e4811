"""Base-shape files written under one layout and read under every other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron.errors import BaseShapeError
from megatron.parametrization.base_shapes import load_base_shapes
from muneox.development.layouts import Layout, configuration, make_corpus
from tests.mpu.distributed import run

pytestmark = pytest.mark.xdist_group("multiprocess")

LLAMA = "Llama, GQA, SwiGLU"
TOPK = "MoE, top-k, SwiGLU"
LAYOUTS = {
    "tp1": Layout(LLAMA),
    "tp2": Layout(LLAMA, tensor=2),
    "pp2": Layout(LLAMA, pipe=2),
    "tp4": Layout(LLAMA, tensor=4),
    "tp2pp2": Layout(LLAMA, tensor=2, pipe=2),
}
QUICK = ("tp1", "tp2", "pp2")
EXPERTS = {"experts-tp1": Layout(TOPK), "experts-tp2": Layout(TOPK, tensor=2), "experts-pp2": Layout(TOPK, pipe=2)}
EVERY = {**LAYOUTS, **EXPERTS}
BASE_KEYS = ("mup_base_hidden_size", "mup_base_num_attention_heads", "mup_base_num_kv_heads")


def _arguments(layout: Layout, folder: Path, **changes: Any) -> Any:
    from megatron.neox_arguments import NeoXArgs

    config = configuration(layout, folder / "corpus", 4)
    return NeoXArgs.from_dict({**config, **changes}, world_size=layout.world_size)


def save(layout: Layout, folder: str, name: str) -> str:
    """Save the files of the base model. Llama's has 8 heads of 4 and 4 key-value heads, divisible by four ranks."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments.resolve import save_base_shapes_config
    from megatron.training.save_base_shapes import run_save_base_shapes

    heads = {"num_attention_heads": 8, "num_kv_heads": 4} if layout.model == LLAMA else {"num_attention_heads": 2}
    base = {"hidden_size": 32, **heads, **dict.fromkeys(BASE_KEYS)}
    args = _arguments(layout, Path(folder), save_base_shapes=True, base_shapes_file=f"{folder}/{name}", **base)
    runtime = initialize_megatron("gloo", 1, layout.tensor, layout.pipe)
    return str(run_save_base_shapes(save_base_shapes_config(args), runtime))


def multipliers(layout: Layout, folder: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """For each file, base and global dimensions of all parameters, and lr_mult of this rank's parameters."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments.resolve import run_config
    from megatron.training.engine import build_train_module
    from megatron.training.model_from_config import model_plan

    runtime = initialize_megatron("gloo", 1, layout.tensor, layout.pipe)
    found = {}
    for name in names:
        keys = dict.fromkeys(BASE_KEYS)
        args = _arguments(layout, Path(folder), base_shapes_file=f"{folder}/{name}", **keys)
        config = run_config(args)
        plan = model_plan(config.model, 512)
        module = build_train_module(config.engine, runtime, plan, config.schedule, config.batch, seed=1)
        groups = module.engine.optimizer.param_groups
        found[name] = {
            "infshapes": {n: (p.base_shape, p.shape, p.fan_in_mult) for n, p in plan.parameters.items()},
            "lr_mult": {n: g["lr"] / module.scheduler.get_base_lr() for g in groups for n in g["parameter_names"]},
        }
        module.engine.destroy()
    return found


def check(names: tuple[str, ...], folder: Path) -> None:
    make_corpus(folder / "corpus")
    for name in names:
        files = run(EVERY[name].world_size, save, EVERY[name], str(folder), name)
        assert len(set(files)) == EVERY[name].world_size
    expected = multipliers_here = None
    for name in names:
        results = run(EVERY[name].world_size, multipliers, EVERY[name], str(folder), list(names))
        for result in results:
            for found in result.values():
                expected = expected or found["infshapes"]
                assert found["infshapes"] == expected
        held: dict[str, float] = {}
        for result in results:
            for found in result.values():
                for parameter, mult in found["lr_mult"].items():
                    assert held.setdefault(parameter, mult) == mult
        multipliers_here = multipliers_here or held
        assert held == multipliers_here  # every parameter is on a rank, with the multiplier of one process
    assert expected
    last = [name for name in expected if name.startswith("layers.0.mlp.") and "dense_4h_to_h" in name]
    assert [expected[name][2] for name in last] == [2.0]


def test_two_processes(tmp_path: Path) -> None:
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_two_processes_with_experts(tmp_path: Path) -> None:
    check(tuple(EXPERTS), tmp_path)


@pytest.mark.slow
def test_every_layout_reads_every_other(tmp_path: Path) -> None:
    check(tuple(LAYOUTS), tmp_path)


def test_a_rank_writes_its_parameters_and_a_missing_file_raises(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    first, second = (Path(file) for file in run(2, save, LAYOUTS["pp2"], str(tmp_path), "pp2"))
    held = [set(load_base_shapes(file).shapes) for file in (first, second)]
    assert not held[0] & held[1]
    assert "embedding.word_embeddings.weight" in held[0] and "readout.weight" in held[1]
    second.unlink()
    with pytest.raises(BaseShapeError, match=r"layers\.2.* is missing in .*pp2\.0"):
        _plan_here(tmp_path)


def test_a_save_removes_files_of_an_earlier_save_with_more_ranks(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    run(2, save, LAYOUTS["tp2"], str(tmp_path), "base")
    run(1, save, LAYOUTS["tp1"], str(tmp_path), "base")
    assert sorted(path.name for path in tmp_path.glob("base.*")) == ["base.0"]


def _plan_here(folder: Path) -> Any:
    from megatron.neox_arguments.resolve import model_config
    from megatron.training.model_from_config import model_plan

    layout = dataclasses.replace(LAYOUTS["tp1"])
    keys = dict.fromkeys(BASE_KEYS)
    args = _arguments(layout, folder, base_shapes_file=str(folder / "pp2"), **keys)
    return model_plan(model_config(args), 512)
