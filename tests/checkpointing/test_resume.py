"""A resumed run equals the uninterrupted run bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import load_weights
from megatron.checkpointing.load import load_checkpoint
from megatron.errors import CheckpointError
from tests.checkpointing import harness

LAYOUTS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16")]


def weights(engine: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_resumed_losses_and_weights_equal_the_uninterrupted_ones(
    one_process: None, tmp_path: Path, stage: int, precision: str
) -> None:
    engine = harness.build_engine(stage, precision)
    losses = harness.train(engine, 0, 8, tmp_path, every=3)  # leaves steps 3 and 6
    fresh = harness.build_engine(stage, precision, seed=2)
    loaded = load_checkpoint(fresh, tmp_path, iteration=3, mup=harness.MUP)
    assert loaded is not None
    assert (loaded.iteration, loaded.client_state["consumed_samples"]) == (3, 3 * harness.BATCH)
    assert loaded.rank_state == {"rank": 0}
    assert fresh.global_steps == 3 and fresh.lr_scheduler.steps == 3
    assert [group["name"] for group in fresh.optimizer.param_groups] == ["hidden", "vector"]
    again = harness.train(fresh, 3, 8)
    assert again == {step: losses[step] for step in range(4, 9)}
    assert_same(weights(fresh), weights(engine))


def test_losses_differ_without_the_random_generators(one_process: None, tmp_path: Path) -> None:
    """The test above would therefore detect a generator that is not restored."""
    engine = harness.build_engine()
    losses = harness.train(engine, 0, 6, tmp_path, every=3)
    fresh = harness.build_engine(seed=2)
    load_checkpoint(fresh, tmp_path, iteration=3, load_rng=False)
    assert harness.train(fresh, 3, 6)[4] != losses[4]


@pytest.mark.parametrize(("stage", "precision"), LAYOUTS)
def test_finetune_loads_only_the_weights(one_process: None, tmp_path: Path, stage: int, precision: str) -> None:
    engine = harness.build_engine(stage, precision)
    harness.train(engine, 0, 3, tmp_path, every=3)
    fresh = harness.build_engine(stage, precision, seed=2)
    changed = {**harness.MUP, "embedding_mult": 2.0}
    loaded = load_checkpoint(fresh, tmp_path, finetune=True, mup=changed)
    assert loaded is not None and loaded.iteration == 0
    assert fresh.global_steps == 0 and fresh.lr_scheduler.steps == 0
    before = weights(fresh)
    assert_same(before, weights(engine))
    fresh.module.eval()  # a step from stale master weights would return to the random initialisation
    harness.train_step(fresh, 4)
    for name, value in weights(fresh).items():
        assert (value - before[name]).abs().max() < 0.02, name


def test_without_optimizer_the_step_count_continues(one_process: None, tmp_path: Path) -> None:
    harness.train(harness.build_engine(1), 0, 3, tmp_path, every=3)
    fresh = harness.build_engine(0, seed=2)  # another ZeRO stage: the weights still fit
    loaded = load_checkpoint(fresh, tmp_path, load_optimizer=False)
    assert loaded is not None and loaded.iteration == 3 == fresh.global_steps
    assert not fresh.optimizer.state


def test_another_zero_setting_raises_before_any_change(one_process: None, tmp_path: Path) -> None:
    harness.train(harness.build_engine(1), 0, 1, tmp_path)
    fresh = harness.build_engine(0, seed=2)
    before = weights(fresh)
    with pytest.raises(CheckpointError, match="saved with ZeRO on, but ZeRO is off now"):
        load_checkpoint(fresh, tmp_path)
    assert_same(before, weights(fresh))


def test_another_model_raises(one_process: None, checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit this model.*size mismatch"):
        load_checkpoint(harness.build_engine(1, width=16), checkpoints)


def test_without_a_checkpoint_the_result_is_none(engine: Any, tmp_path: Path) -> None:
    assert load_checkpoint(engine, tmp_path) is None
    assert load_checkpoint(engine, tmp_path / "absent") is None


def test_an_absent_iteration_names_the_available_steps(engine: Any, checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 \(available steps: 1, 2, 3\)"):
        load_checkpoint(engine, checkpoints, iteration=7)


def test_load_weights_needs_no_engine(engine: Any, checkpoints: Path) -> None:
    loaded = load_weights(checkpoints)
    assert loaded.iteration == 3 and loaded.configs == harness.CONFIGS
    assert loaded.client_state["mup"] == harness.MUP
    fresh = harness.build_engine(1, seed=2)
    load_checkpoint(fresh, checkpoints)
    assert_same(loaded.weights, weights(fresh))
    assert load_weights(checkpoints / "global_step2").iteration == 2
    assert load_weights(checkpoints, 1).iteration == 1


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("stage", [0, 1])
def test_two_processes_agree_and_resume(tmp_path: Path, stage: int) -> None:
    """If one rank cannot write, both raise and none hangs. The earlier checkpoint then resumes exactly."""
    both = harness.launch("agree", tmp_path, f"--stage={stage}", world_size=2)
    outputs = [out[-1] for out in harness.results(both)]
    for rank, out in enumerate(outputs):
        assert {str(step): out["losses"][str(step)] for step in range(5, 9)} == out["again"]
        assert "File too large" in out["error"] and str(tmp_path) in out["error"]
        assert out["left"] == ["global_step4", "latest"]
        assert out["rank_state"] == rank
    assert outputs[0]["losses"] != outputs[1]["losses"]  # each rank has different data
    if stage == 1:
        [[alone]] = harness.results(harness.launch("load", tmp_path, "--stage=1"))
        assert "sharded over 2 data-parallel processes, but there are 1 now" in alone["error"]
    shard = next(tmp_path.glob("global_step4/rng_rank_01.pt"))
    shard.write_bytes(shard.read_bytes()[:-1])
    for out in harness.results(harness.launch("load", tmp_path, f"--stage={stage}", world_size=2)):
        assert "rng_rank_01.pt" in out[-1]["error"]
