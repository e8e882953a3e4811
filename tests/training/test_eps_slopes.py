"""Adam's eps under muP: a large eps does not change how the updates of any parameter scale with the width."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from megatron.initialize import initialize_megatron
from megatron.neox_arguments.resolve import run_config
from megatron.training.trainer import Trainer
from mup import rules
from tests.training.harness import arguments, configuration
from tests.training.test_mup_run import with_cell

WIDTHS, SEEDS, STEPS = (32, 64, 128, 256), (1, 2, 3), 4
UNSCALED = {  # what falls with the width where the eps of a role is not scaled
    rules.Role.HIDDEN: "layers.attention.query_key_value.weight",
    rules.Role.OUTPUT: "readout.weight",
    rules.Role.VECTOR: "layers.input_layernorm.weight",
}


def updates(corpus: Path, folder: Path, width: int, seed: int, eps: float) -> dict[str, float]:
    """RMS of the updates of each kind of parameter over the first STEPS steps at a constant rate."""
    changes = {
        "hidden_size": width, "num_attention_heads": width // 16, "seed": seed, "use_qk_layernorm": True,
        "mup_base_hidden_size": 32, "mup_base_num_attention_heads": 2, "lr_decay_style": "constant", "warmup": 0.0,
        "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "betas": [0.9, 0.95], "eps": eps}}, "weight_decay": 0.0,
    }  # fmt: skip
    config = run_config(arguments(configuration(corpus, folder, **changes)))
    trainer = Trainer(config, initialize_megatron(seed=seed))
    batches = trainer.data.train_batches(0)
    squares: dict[str, list[float]] = {}
    for _ in range(STEPS):
        before = {name: p.detach().clone() for name, p in trainer.train_module.model.global_named_parameters()}
        trainer.train_module.train_step(batches)
        for name, p in trainer.train_module.model.global_named_parameters():
            kind = re.sub(r"\.\d+\.", ".", name)
            squares.setdefault(kind, []).append(float((p.detach() - before[name]).square().mean()))
    return {kind: float(np.mean(values)) ** 0.5 for kind, values in squares.items()}


def slopes(corpus: Path, folder: Path, eps: float) -> dict[str, float]:
    """Slope of log update over log width of each kind of parameter."""
    means = [
        {kind: np.mean([run[kind] for run in runs]) for kind in runs[0]}
        for runs in ([updates(corpus, folder, width, seed, eps) for seed in SEEDS] for width in WIDTHS)
    ]
    x = [math.log2(width) for width in WIDTHS]
    return {kind: float(np.polyfit(x, [math.log2(mean[kind]) for mean in means], 1)[0]) for kind in means[0]}


@pytest.mark.slow
def test_a_large_eps_does_not_change_how_any_update_scales(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slopes over widths 32 to 256 at eps 1e-4 are those at 1e-8 within 0.12, for every kind of parameter."""
    small, large = slopes(corpus, tmp_path, 1e-8), slopes(corpus, tmp_path, 1e-4)
    for kind in small:
        print(f"{kind:55s} {small[kind]:6.2f} {large[kind]:6.2f} {large[kind] - small[kind]:6.2f}")
    assert len(small) >= 16
    assert {kind: large[kind] - small[kind] for kind in small if abs(large[kind] - small[kind]) > 0.12} == {}
    for role, kind in UNSCALED.items():
        with monkeypatch.context() as patch:
            patch.setattr(rules, "TABLE", with_cell(role, eps=rules.ONE))
            assert slopes(corpus, tmp_path, 1e-4)[kind] < large[kind] - 0.1, role
