"""Shape metadata and the rescale mark survive torch's operations on models and state dicts."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mup
from mup import MuAdam, MuReadout, MuSharedReadout

ROOT = Path(__file__).parents[2]


def mlp(width: int) -> Any:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), MuReadout(width, 3))


def in_mup(width: int = 32) -> Any:
    return mup.set_base_shapes(mlp(width), mlp(4), delta=mlp(8))


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def assert_whole(model: nn.Module, like: nn.Module, same_output: bool = True) -> None:
    assert mup.get_infshapes(model) == mup.get_infshapes(like)
    if same_output:
        torch.testing.assert_close(model(X), like(X))
    lrs = {g["name"]: g["lr"] for g in MuAdam(model.parameters(), lr=1.0).param_groups}
    assert lrs == {"hidden_x8": 0.125, "vector_x1": 1.0}


def test_deepcopy_sets_the_shapes_on_the_copied_tensors() -> None:
    model = in_mup()
    twice = copy.deepcopy(copy.deepcopy(model))
    assert all(hasattr(p, "infshape") for p in twice.parameters())  # without a call of attach
    assert_whole(twice, model)
    twice[0].weight.infshape[0].dim = 7
    assert model[0].weight.infshape[0].dim == 32  # nothing is shared


def test_deepcopy_of_a_part_and_of_a_shallow_copy() -> None:
    model = in_mup()
    part = copy.deepcopy(model[2])
    assert part.weight.infshape == model[2].weight.infshape and part.weight is not model[2].weight
    assert_whole(copy.deepcopy(copy.copy(model)), model)


def test_tied_weights_stay_tied_in_a_copy() -> None:
    def make(width: int) -> Any:
        embedding = nn.Embedding(11, width)
        return nn.Sequential(embedding, nn.Linear(width, width), MuSharedReadout(embedding.weight))

    model: Any = copy.deepcopy(mup.set_base_shapes(make(16), make(4), delta=make(8)))
    assert model[0].weight is model[2].weight and model[2].width_mult() == 4
    assert model[0].weight.infshape.role is mup.Role.INPUT


def test_averaged_model() -> None:
    model = in_mup()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert_whole(average.module, model)
    assert set(mup.get_infshapes(average)) == {"module." + name for name in mup.get_infshapes(model)}


def test_pickle() -> None:
    model = in_mup()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert all(hasattr(p, "infshape") for p in loaded.parameters())
    assert_whole(loaded, model)
    assert_whole(copy.deepcopy(loaded), model)


def test_load_state_dict_with_assign() -> None:
    model, other = in_mup(), in_mup()
    other.load_state_dict({name: p.clone() for name, p in model.state_dict().items()}, assign=True)
    assert_whole(other, model)


def test_meta_then_to_empty() -> None:
    with torch.device("meta"):
        model = in_mup()
    model.to_empty(device="cpu")
    reference = in_mup()
    model.load_state_dict(reference.state_dict())
    assert_whole(mup.attach(model), reference)
    assert MuAdam(copy.deepcopy(model), lr=1.0).param_groups[0]["lr"] == 0.125  # the model itself needs no attach


def test_meta_then_reset_gives_the_init_of_a_model_built_directly() -> None:
    with torch.device("meta"):
        model = in_mup()
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    mup.set_base_shapes(model, mlp(4), delta=mlp(8))
    torch.manual_seed(3)
    model_at_once = mlp(32)
    assert_whole(model, mup.set_base_shapes(model_at_once, mlp(4), delta=mlp(8)))


def test_functional_call_vmap_and_grad() -> None:
    model = in_mup()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(model, parameters, (X,)), model(X))
    per_sample = torch.func.vmap(lambda x: torch.func.functional_call(model, parameters, (x,)))(X)
    torch.testing.assert_close(per_sample, model(X))


def test_export() -> None:
    model = in_mup()
    exported = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(exported(X), model(X))


def test_compile_without_graph_breaks() -> None:
    model = in_mup()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))
    compiled_first: Any = torch.compile(mlp(32), backend="eager")
    again = mup.set_base_shapes(compiled_first, mlp(4), delta=mlp(8))
    assert all(name.startswith("_orig_mod.") for name in mup.get_infshapes(again))


def test_dtype_and_half_precision_keep_the_shapes() -> None:
    model = in_mup()
    assert_whole(copy.deepcopy(model).double().float(), model)


@pytest.mark.slow
def test_fully_shard_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(
        textwrap.dedent(
            """
            import copy, os, sys
            import torch, torch.distributed as dist, torch.multiprocessing as mp
            import mup
            from mup import MuAdam, MuReadout
            from torch import nn
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            def mlp(w):
                return nn.Sequential(nn.Linear(5, w), nn.ReLU(), nn.Linear(w, w), MuReadout(w, 3))

            def worker(rank, file):
                dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
                torch.manual_seed(0)
                model = mup.set_base_shapes(mlp(32), mlp(4), delta=mlp(8))
                plain, before = copy.deepcopy(model), mup.get_infshapes(model)
                mesh = init_device_mesh("cpu", (2,))
                fully_shard(model[2], mesh=mesh)
                fully_shard(model, mesh=mesh)
                assert mup.get_infshapes(model) == before
                sharded, single = MuAdam(model, lr=0.01), MuAdam(plain, lr=0.01)
                assert [g["lr"] for g in sharded.param_groups] == [g["lr"] for g in single.param_groups]
                x = torch.randn(6, 5)
                for _ in range(2):
                    for net, optimizer in ((model, sharded), (plain, single)):
                        optimizer.zero_grad()
                        net(x).square().mean().backward()
                        optimizer.step()
                torch.testing.assert_close(model(x), plain(x))
                dist.barrier()
                dist.destroy_process_group()

            if __name__ == "__main__":
                mp.spawn(worker, (sys.argv[1],), nprocs=2)
            """
        )
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "rendezvous")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- parameters are rescaled only once -------------------------------------------------------------------------


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(model: nn.Module, expected: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, values(model), expected))


def save_and_load(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, torch.Tensor] = torch.load(stream, weights_only=True)
    return loaded


def test_set_base_shapes_again_rescales_nothing() -> None:
    model = in_mup()
    before = values(model)
    mup.set_base_shapes(model, mlp(4), delta=mlp(8))
    mup.set_base_shapes(copy.deepcopy(model), mlp(4), delta=mlp(8))
    assert same(model, before)


def test_a_loaded_checkpoint_is_not_rescaled() -> None:
    trained = in_mup()
    state = save_and_load(trained.state_dict())
    fresh = mlp(32)
    fresh.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mup.set_base_shapes(fresh, mlp(4), delta=mlp(8))
    assert same(fresh, values(trained))
    other = in_mup()
    other.load_state_dict(state)
    mup.set_base_shapes(other, mlp(4), delta=mlp(8))
    assert same(other, values(trained))


def test_a_state_dict_from_before_set_base_shapes_is_rescaled_once() -> None:
    raw = mlp(32)
    state = save_and_load(raw.state_dict())
    expected = mup.set_base_shapes(copy.deepcopy(raw), mlp(4), delta=mlp(8))
    for model in (mlp(32), in_mup()):  # the second model in memory is already rescaled
        model.load_state_dict(state)
        mup.set_base_shapes(model, mlp(4), delta=mlp(8))
        assert same(model, values(expected))


def test_a_state_dict_without_mark_is_not_rescaled_and_warns() -> None:
    trained = in_mup()
    bare = dict(trained.state_dict())  # like a state dict from safetensors or from the original package
    fresh = mlp(32)
    fresh.load_state_dict(bare)
    with pytest.warns(UserWarning, match="does not record"):
        mup.set_base_shapes(fresh, mlp(4), delta=mlp(8))
    assert same(fresh, values(trained))


def test_the_mark_adds_no_key_and_torch_models_load_our_state_dicts() -> None:
    plain = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 3))
    state = save_and_load(in_mup().state_dict())
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    in_mup().load_state_dict(plain.state_dict())


def test_rescale_params_false() -> None:
    model = mlp(32)
    before = values(model)
    mup.set_base_shapes(model, mlp(4), delta=mlp(8), rescale_params=False)
    assert same(model, before)
    assert model[3].width_mult() == 8


def test_reset_parameters_of_a_readout_is_in_mup() -> None:
    model = in_mup(400)
    before = float(model[3].weight.detach().std())
    model[3].reset_parameters()
    assert float(model[3].weight.detach().std()) == pytest.approx(before, rel=0.1)
    mup.set_base_shapes(model, mlp(4), delta=mlp(8))
    assert float(model[3].weight.detach().std()) == pytest.approx(before, rel=0.1)


# ---- tied readouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_tied_embedding_is_not_rescaled(by_hand: bool) -> None:
    def make(width: int) -> Any:
        embedding = nn.Embedding(11, width)
        if by_hand:
            readout = MuReadout(width, 11)
            readout.weight = embedding.weight
        else:
            readout = MuSharedReadout(embedding.weight)
        return nn.Sequential(embedding, nn.Linear(width, width), readout)

    model = make(64)
    before, bias = model[0].weight.detach().clone(), model[2].bias.detach().clone()
    mup.set_base_shapes(model, make(4), delta=make(8))
    assert model[2].weight is model[0].weight and torch.equal(model[0].weight.detach(), before)
    torch.testing.assert_close(model[2].bias.detach(), 4 * bias)
    hidden = torch.randn(3, 64)
    torch.testing.assert_close(model[2](hidden), hidden @ before.T / 16 + model[2].bias)


def test_shared_readout_has_a_bias_of_the_vocabulary_and_refuses_zero_init() -> None:
    embedding = nn.Embedding(11, 4)
    assert MuSharedReadout(embedding.weight).bias.shape == (11,)
    with pytest.raises(ValueError, match="set the embedding to zero"):
        MuSharedReadout(embedding.weight, readout_zero_init=True)
