"""The audit under every kind of layout: no false alarm, updates measured, and a wrong optimizer seen."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mpu.distributed import run
from tests.training.harness import configuration, make_corpus

slow = pytest.mark.slow
TIED = {"no_weight_tying": False}
EXPERTS = {"moe_num_experts": 4, "moe_top_k": 2, "moe_router_type": "topk"}
CLIPPED = {"gradient_clipping": 1.0, "mup_weight_decay_mode": "independent"}
PIPE, TENSOR = {"pipe_parallel_size": 2}, {"model_parallel_size": 2}
LAYOUTS: list[Any] = [
    pytest.param(2, PIPE | TIED, id="pp2-tied"),
    pytest.param(2, {"zero_optimization": {"stage": 3}}, id="zero3", marks=slow),
    pytest.param(2, {"zero_optimization": {"stage": 3}, "precision": "bfloat16"}, id="zero3-bf16", marks=slow),
    pytest.param(2, {"zero_optimization": {"stage": 2}} | CLIPPED, id="zero2-clipped", marks=slow),
    pytest.param(2, TENSOR | CLIPPED, id="tp2-clipped", marks=slow),
    pytest.param(2, TENSOR | EXPERTS, id="tp2-experts", marks=slow),
    pytest.param(2, TENSOR | TIED | {"sequence_parallel": True}, id="tp2-sequence-tied", marks=slow),
    pytest.param(2, PIPE | CLIPPED | {"zero_optimization": {"stage": 1}}, id="pp2-zero1", marks=slow),
    pytest.param(2, PIPE | {"precision": "bfloat16"}, id="pp2-bf16", marks=slow),
    pytest.param(4, PIPE | TENSOR | TIED, id="tp2-pp2-tied", marks=slow),
    pytest.param(1, {"precision": "fp16", "zero_optimization": {"stage": 1}}, id="fp16", marks=slow),
    pytest.param(2, PIPE | {"precision": "fp16", "zero_optimization": {"stage": 1}}, id="pp2-fp16", marks=slow),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "text_document")


def audit(keys: dict[str, Any], size: int, coupled: bool) -> tuple[list[str], set[str], list[str]]:
    """Run the audit. Returns faults, measured quantities and notes. coupled: decay is added to the gradient."""
    from deepspeed.accelerator import get_accelerator

    from megatron.audit.run import run_audit
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import audit_config
    from megatron.training import optimizer

    get_accelerator().is_fp16_supported = lambda: True  # in software on some processors
    if coupled:
        adam = functools.partialmethod(lambda self, *a, **k: torch.optim.Adam.__init__(self, *a, **k))
        optimizer.AdamW.__init__ = adam  # type: ignore[assignment, method-assign]
    config = audit_config(NeoXArgs.from_dict(keys, world_size=size))
    layout = config.engine.layout
    found = run_audit(config, initialize_megatron("gloo", config.seed, layout.tensor, layout.pipe))
    faults = [f"{row.name}: {fault}" for row in found.rows for fault in row.faults]
    return faults, {quantity for row in found.rows for quantity in row.measured}, found.notes


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize(("size", "changes"), LAYOUTS)
def test_updates_are_measured_in_every_layout(corpus: Path, tmp_path: Path, size: int, changes: dict[str, Any]) -> None:
    keys = configuration(corpus, tmp_path, **changes)
    for faults, measured, remarks in run(size, audit, keys, size, False):
        assert not faults
        assert {"lr of the update at peak", "lr of the update at decay"} <= measured, remarks
        assert not any("no update" in remark for remark in remarks)


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize(("size", "changes"), [pytest.param(*p.values, id=p.id, marks=slow) for p in LAYOUTS])
def test_a_wrong_optimizer_is_seen_in_every_layout(
    corpus: Path, tmp_path: Path, size: int, changes: dict[str, Any]
) -> None:
    keys = configuration(corpus, tmp_path, **{**changes, "mup_weight_decay_mode": "scaled"})
    for faults, _, _ in run(size, audit, keys, size, True):
        assert any("decay of the update at peak" in fault for fault in faults), faults
