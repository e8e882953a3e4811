"""Communication of a training step, counted in a run, against the formulas in the docstrings of the layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron.dry_run.layers import measure
from megatron.model.layers import make_norm
from megatron.mpu import ProcessGroups, TensorParallel
from megatron.mpu.topology import Grid
from muneox.development.layouts import Layout, configuration, make_corpus
from tests.mpu.distributed import run

Counted = dict[str, tuple[int, float]]

BLOCKS, HIDDEN, SEQUENCE, MICRO, MICROBATCHES = 4, 64, 16, 2, 4  # as in muneox.development.layouts.configuration


def count(layout: Layout, folder: str) -> Counted:
    """Calls and sent bytes of the tensor-parallel group in one training step, by collective."""
    from megatron.initialize import initialize_megatron
    from megatron.mpu import count_communication
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import run_config
    from megatron.training.trainer import Trainer

    config = configuration(layout, Path(folder) / "corpus", 4)
    args = NeoXArgs.from_dict(config, world_size=layout.world_size)
    trainer = Trainer(run_config(args), initialize_megatron("gloo", args.seed, layout.tensor, layout.pipe))
    batches = trainer.data.train_batches()
    with count_communication() as counts:
        trainer.train_module.train_step(batches)
    return {name: (tally.calls, tally.sent_bytes) for name, tally in counts.tallies.items()}


@pytest.mark.xdist_group("multiprocess")
def test_a_step_sends_the_bytes_of_the_docstrings(tmp_path: Path) -> None:
    """With two ranks an all-reduce sends its payload once, all-gather and reduce-scatter send half of it."""
    make_corpus(tmp_path / "corpus")
    plain = run(2, count, Layout("GPT, untied", tensor=2), str(tmp_path))[0]
    cut = run(2, count, Layout("GPT, untied", tensor=2, sequence_parallel=True), str(tmp_path))[0]
    hidden = 4 * MICRO * SEQUENCE * HIDDEN
    regions = MICROBATCHES * (2 * BLOCKS + 1)  # backward entry: MLP and attention of each block, and the readout
    left = MICROBATCHES * (2 * BLOCKS + 1)  # forward exit: MLP and attention of each block, and the embedding
    loss = MICROBATCHES * 12 * MICRO * SEQUENCE
    norm = 8  # the gradient norm, one fp64 number
    assert plain == {"all_reduce": (regions + left + 2 * MICROBATCHES + 1, (regions + left) * hidden + loss + norm)}
    # under sequence parallelism, norms and the biases of row-parallel layers have partial gradients
    partial = [HIDDEN] * (2 * BLOCKS * 2 + 2 + 2 * BLOCKS)
    own = 4 * sum(partial) * MICROBATCHES
    assert cut["all_gather"] == cut["reduce_scatter"] == (regions + left, (regions + left) * hidden / 2)
    assert cut["all_reduce"] == (2 * MICROBATCHES + 1 + MICROBATCHES * len(partial), loss + norm + own)
    activations = sum(cut[name][1] for name in ("all_gather", "reduce_scatter")) + loss + norm
    assert activations <= plain["all_reduce"][1]


@pytest.mark.parametrize("ranks", [2, 4])
def test_sequence_parallelism_divides_the_activations_of_norm_and_dropout(ranks: int) -> None:
    kept = {}
    for cut in (False, True):
        tp = TensorParallel(ProcessGroups.described(Grid(tensor=ranks), 0).tensor, cut)
        with torch.device("meta"):
            norm = make_norm("layernorm", HIDDEN, 1e-5, True, tp)
            length = SEQUENCE // ranks if cut else SEQUENCE
            x = torch.empty(MICRO, length, HIDDEN)
            cost = measure(norm, x, lambda layer, x: torch.nn.functional.dropout(layer(x), 0.1))
        kept[cut] = cost.saved_bytes
    assert kept[True] * ranks == kept[False]
