"""A checkpoint continues under another layout, with the losses of the uninterrupted run and the same moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron.checkpointing import WholeCheckpoint, find_intact, load_weights
from megatron.checkpointing.integrity import load_safely
from megatron.errors import ConfigError
from muneox.commands import inspect_checkpoints, merge_weights
from muneox.development.layouts import Layout, make_corpus
from tests.layouts.runs import STEPS, train
from tests.mpu.distributed import run

pytestmark = pytest.mark.xdist_group("multiprocess")

UNTIED, TIED, LLAMA = "GPT, untied", "GPT, tied, learned positions", "Llama, GQA, SwiGLU"
TOPK = "MoE, top-k, SwiGLU"
WINDOW, RPE = "ALiBi in a sliding window", "relative position bias"
SCALENORM = "sinusoidal positions, ScaleNorm"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reshard")
    make_corpus(path / "corpus")
    return path


def whole(directory: Path) -> WholeCheckpoint:
    path = find_intact(directory)
    assert path is not None
    header = load_safely(sorted(path.glob("*mp_rank_*model_states.pt"))[0], mmap=True)
    return WholeCheckpoint(path, header)


def assert_same_states(a: Path, b: Path) -> None:
    """Assert that weights, moments and step counts of two checkpoints are equal bit for bit."""
    first, second = whole(a), whole(b)
    assert first.names == second.names
    for name, state in first.states():
        other = second.state(name)
        assert state.step == other.step > 0
        assert set(state.moments) == set(other.moments) == {"exp_avg", "exp_avg_sq"}
        assert torch.equal(state.weight.float(), other.weight.float()), name
        assert all(torch.equal(x, other.moments[key]) for key, x in state.moments.items()), name


PAIRS = [
    pytest.param(Layout(UNTIED, tensor=2), Layout(UNTIED, data=2, zero=1), id="tp2-to-dp2-zero1"),
    pytest.param(Layout(TIED, pipe=2), Layout(TIED), id="pp2-to-one"),
    pytest.param(Layout(TOPK, tensor=2), Layout(TOPK, pipe=2), id="experts-tp2-to-pp2", marks=slow),
    pytest.param(Layout(RPE, tensor=2), Layout(RPE, pipe=2), id="rpe-tp2-to-pp2", marks=slow),
    pytest.param(Layout(RPE, data=2, zero=3), Layout(RPE, tensor=2), id="rpe-zero3-to-tp2", marks=slow),
    pytest.param(Layout(WINDOW, tensor=2), Layout(WINDOW, data=2, zero=1), id="alibi-window-tp2-to-dp2", marks=slow),
    pytest.param(Layout(WINDOW, pipe=2), Layout(WINDOW, tensor=4), id="alibi-window-pp2-to-tp4", marks=slow),
    pytest.param(Layout(SCALENORM, tensor=2), Layout(SCALENORM, pipe=2), id="scalenorm-tp2-to-pp2", marks=slow),
    pytest.param(Layout(TOPK, data=2, zero=3), Layout(TOPK, tensor=2), id="experts-zero3-to-tp2", marks=slow),
    pytest.param(Layout(TIED, tensor=2, pipe=2), Layout(TIED, tensor=2, pipe=2), id="tp2pp2-again", marks=slow),
    pytest.param(Layout(LLAMA, tensor=2, zero=1), Layout(LLAMA, tensor=2, zero=1), id="tp2zero1-again", marks=slow),
    pytest.param(
        Layout(UNTIED, pipe=2, data=2, zero=1), Layout(UNTIED, pipe=2, data=2, zero=1), id="pp2dp2-again", marks=slow
    ),
    pytest.param(Layout(UNTIED, data=2, zero=3), Layout(UNTIED, data=2, zero=3), id="zero3-again", marks=slow),
    pytest.param(Layout(UNTIED, tensor=2, pipe=2), Layout(UNTIED, data=4), id="tp2pp2-to-dp4", marks=slow),
    pytest.param(Layout(UNTIED, data=4), Layout(UNTIED, tensor=2, pipe=2), id="dp4-to-tp2pp2", marks=slow),
    pytest.param(
        Layout(TIED, tensor=2, data=2, zero=1), Layout(TIED, pipe=2, data=2, zero=1), id="tp2dp2-to-pp2dp2", marks=slow
    ),
    pytest.param(Layout(LLAMA, data=2, zero=3), Layout(LLAMA, tensor=2), id="zero3-to-tp2", marks=slow),
    pytest.param(Layout(LLAMA, tensor=2), Layout(LLAMA, data=2, zero=3), id="tp2-to-zero3", marks=slow),
    pytest.param(Layout(UNTIED, data=2, zero=2), Layout(UNTIED, data=4, zero=2), id="zero2-to-dp4", marks=slow),
]


def _train_checked(layout: Layout, folder: str, steps: int, load: str | None, save: str | None) -> object:
    """Run `train`; every load compares the loss on fixed tokens with that of the save."""
    return train(layout, folder, steps, load, save, checkpoint_validation_with_forward_pass=True)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_checkpoint_continues_under_another_layout(
    before: Layout, after: Layout, folder: Path, tmp_path: Path
) -> None:
    half = STEPS // 2
    uninterrupted, _ = run(1, train, Layout(before.model), str(folder), STEPS)[0]
    first, _ = run(before.world_size, _train_checked, before, str(folder), half, None, str(tmp_path / "a"))[0]
    run(after.world_size, _train_checked, after, str(folder), 0, str(tmp_path / "a"), str(tmp_path / "b"))
    second, _ = run(after.world_size, _train_checked, after, str(folder), half, str(tmp_path / "b"), None)[0]
    for loss, expected in zip([*first, *second], uninterrupted, strict=True):
        assert abs(loss - expected) <= 1e-5 * expected
    assert_same_states(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Layout(UNTIED, data=2, zero=1), Layout(UNTIED, tensor=2, data=1, zero=1), id="bf16-dp2-to-tp2"),
        pytest.param(
            Layout(UNTIED, pipe=2, zero=1), Layout(UNTIED, data=2, zero=3), id="bf16-pp2-to-zero3", marks=slow
        ),
    ],
)
def test_bf16_keeps_its_fp32_master_weights(before: Layout, after: Layout, folder: Path, tmp_path: Path) -> None:
    bf16 = {"precision": "bfloat16"}
    for layout, steps, load, save in ((before, 3, None, "a"), (after, 0, "a", "b")):
        source = str(tmp_path / load) if load else None
        run(layout.world_size, _train_bf16, layout, str(folder), steps, source, str(tmp_path / save))
    assert_same_states(tmp_path / "a", tmp_path / "b")
    assert whole(tmp_path / "a").layout.precision == bf16["precision"]


def _train_bf16(layout: Layout, folder: str, steps: int, load: str | None, save: str) -> None:
    train(layout, folder, steps, load, save, precision="bfloat16")


@pytest.mark.parametrize("model", [LLAMA, pytest.param(TOPK, marks=slow)])
def test_weights_load_without_an_engine_from_any_layout(model: str, folder: Path, tmp_path: Path) -> None:
    layout = Layout(model, tensor=2)
    run(2, train, layout, str(folder), 1, None, str(tmp_path / "tp2"))
    run(1, train, Layout(model), str(folder), 1, None, str(tmp_path / "one"))
    sharded, plain = (load_weights(tmp_path / name).weights for name in ("tp2", "one"))
    assert sharded.keys() == plain.keys()
    for name, weight in sharded.items():
        # Adam divides a gradient by its own size plus eps: in the few entries whose gradient is near eps
        # (a key's bias, the row of a rare token, an expert that few tokens reached) rounding becomes a visible step.
        torch.testing.assert_close(weight, plain[name], rtol=1e-4, atol=1e-4)
        moved = ~torch.isclose(weight, plain[name], rtol=1e-4, atol=1e-6)
        assert int(moved.sum()) <= max(4, weight.numel() // 10_000), name
    for ending in ("safetensors", "pt"):
        file = tmp_path / f"whole.{ending}"
        assert merge_weights.main([str(tmp_path / "tp2"), str(file)]) == 0
        whole = load_file(file) if ending == "safetensors" else torch.load(file, weights_only=True)["weights"]
        assert whole.keys() == sharded.keys()
        assert all(torch.equal(whole[name], weight) for name, weight in sharded.items())
    assert [path.name for path in tmp_path.glob(".tmp-*")] == []
    with pytest.raises(ConfigError, match=r"suffix must be \.safetensors or \.pt"):
        merge_weights.main([str(tmp_path / "tp2"), str(tmp_path / "whole.bin")])
    assert inspect_checkpoints.main([str(tmp_path / "tp2")]) == 0
