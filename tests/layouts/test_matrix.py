"""Training under several layouts against one process. `make layouts` prints the whole matrix."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from muneox.development.layouts import LAYOUTS, TOLERANCE, Layout, compare, make_corpus
from tests.layouts.runs import train
from tests.mpu.distributed import run

pytestmark = pytest.mark.xdist_group("multiprocess")

TIED, LLAMA = "GPT, tied, learned positions", "Llama, GQA, SwiGLU"
TOPK, SINKHORN = "MoE, top-k, SwiGLU", "MoE, sinkhorn, interval 2"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("layouts") / "corpus")


def test_two_processes_train_like_one(corpus: Path) -> None:
    """One layout of each kind: tensor parallel with sequence parallelism, a tied pipeline, ZeRO 1 and 3."""
    chosen = [
        Layout(LLAMA, tensor=2, sequence_parallel=True),
        Layout(TIED, pipe=2),
        Layout(LLAMA, data=2, zero=3),
        Layout(TIED, data=2, zero=1),
        Layout(TOPK, tensor=2, sequence_parallel=True),
        Layout(TOPK, pipe=2),
        Layout(TOPK, data=2, zero=1),
        Layout(SINKHORN, tensor=2),
    ]
    assert [row.layout.name for row in compare(chosen, corpus, steps=4) if not row.passed] == []


@pytest.mark.slow
def test_the_whole_matrix(corpus: Path) -> None:
    assert len(LAYOUTS) >= 20 and {layout.mup for layout in LAYOUTS} == {True, False}
    assert [row for row in compare(LAYOUTS, corpus, steps=10) if not row.passed] == []


def _replicated(layouts: list[Layout], folder: str, changes: dict[str, Any]) -> list[dict[str, str]]:
    """Digests of the replicated parameters after three steps."""
    from megatron.mpu import shard_of

    found = []
    for layout in layouts:
        trained: list[Any] = []
        train(layout, folder, 3, inspect=trained.append, **changes)
        parameters = dict(trained[0].train_module.model.global_named_parameters())
        kept = {name: p.detach() for name, p in parameters.items() if shard_of(p) is None}
        found.append({name: hashlib.sha256(p.numpy().tobytes()).hexdigest() for name, p in kept.items()})
    return found


@pytest.mark.slow
def test_dropout_keeps_replicated_parameters_equal(corpus: Path) -> None:
    """All ranks use one mask outside the tensor-parallel regions, also when a block is recomputed."""
    layouts = [Layout(TIED, tensor=2), Layout(TIED, tensor=2, sequence_parallel=True)]
    changes = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "checkpoint_activations": True}
    first, second = run(2, _replicated, layouts, str(corpus.parent), changes)
    assert first == second and all("layers.0.input_layernorm.weight" in kept for kept in first)
    without = run(2, _replicated, layouts[:1], str(corpus.parent), {})[0]
    assert without[0] != first[0]  # dropout was active


def _without_partial_gradients(layout: Layout, folder: str, steps: int) -> object:
    """Run `train`, but do not sum the partial gradients over the ranks."""
    from megatron.training import engine

    engine.sync_partial_grads_in_backward = lambda model, group: []  # type: ignore[assignment]
    return train(layout, folder, steps)


def _with_local_norm(layout: Layout, folder: str, steps: int) -> object:
    """Run `train`, but clip by the gradient norm of this rank's shards."""
    from megatron.training import engine
    from megatron.training.optimizer import local_grad_norm

    engine.global_grad_norm = lambda parameters, groups: local_grad_norm(parameters)  # type: ignore[assignment]
    return train(layout, folder, steps)


def _with_a_router_loss_per_rank(layout: Layout, folder: str, steps: int) -> object:
    """Run `train`, but let every tensor-parallel rank add the whole gradient of the router's losses."""
    from megatron.model import moe

    whole = moe._with_loss
    moe._with_loss = lambda y, loss, scale: whole(y, loss * layout.tensor, scale)
    return train(layout, folder, steps)


@pytest.mark.parametrize(
    ("mutation", "model"),
    [
        (_without_partial_gradients, LLAMA),
        pytest.param(_with_local_norm, LLAMA, marks=pytest.mark.slow),
        pytest.param(_without_partial_gradients, TOPK, marks=pytest.mark.slow),
        pytest.param(_with_a_router_loss_per_rank, TOPK, marks=pytest.mark.slow),
    ],
)
def test_the_comparison_detects_mutations(mutation: object, model: str, corpus: Path) -> None:
    layout = Layout(model, tensor=2, sequence_parallel=True)
    losses, norms = run(1, train, Layout(model), str(corpus.parent), 4)[0]
    wrong_losses, wrong_norms = run(2, mutation, layout, str(corpus.parent), 4)[0]  # type: ignore[arg-type]
    apart = [abs(a - b) / b for a, b in zip([*wrong_losses, *wrong_norms], [*losses, *norms], strict=True)]
    assert max(apart) > 10 * TOLERANCE
