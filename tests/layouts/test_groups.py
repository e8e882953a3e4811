"""muP's parameter groups under every layout: the learning rate of each parameter in the engine at every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.errors import ConfigError
from megatron.model.build import shapes_at
from megatron.model.gpt import layer_list
from megatron.model.stages import stage_bounds, stage_parameters
from megatron.parametrization.widths import ForwardFactors
from muneox.development.layouts import Layout, configuration, make_corpus
from tests.model.helpers import config
from tests.mpu.distributed import run

Rates = list[dict[str, float]]


def rates(layouts: list[Layout], folder: str, steps: int = 4) -> list[Rates]:
    """For each layout and step, the learning rate of every parameter on this rank."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import run_config
    from megatron.training.trainer import Trainer

    found = []
    for layout in layouts:
        values = {**configuration(layout, Path(folder) / "corpus", steps), "warmup": 0.5, "min_lr": 0.002}
        args = NeoXArgs.from_dict(values, world_size=layout.world_size)
        trainer = Trainer(run_config(args), initialize_megatron("gloo", args.seed, layout.tensor, layout.pipe))
        batches = trainer.data.train_batches()
        by_step: Rates = []
        for _ in range(steps):
            groups = trainer.train_module.engine.optimizer.param_groups
            by_step.append({name: group["lr"] for group in groups for name in group["parameter_names"]})
            trainer.train_module.train_step(batches)
        trainer.train_module.engine.destroy()
        found.append(by_step)
    return found


@pytest.mark.xdist_group("multiprocess")
def test_every_layout_has_the_rates_of_one_process(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    model = "Llama, GQA, SwiGLU"
    layouts = [
        Layout(model, tensor=2),
        Layout(model, pipe=2),
        Layout(model, data=2, zero=1),
        Layout(model, data=2, zero=2),
        Layout(model, data=2, zero=3),
    ]
    [[alone]] = run(1, rates, [Layout(model)], str(tmp_path))
    hidden, embedding = "layers.0.mlp.dense_h_to_4h.weight", "embedding.word_embeddings.weight"
    assert all(step[hidden] * 4 == step[embedding] for step in alone)
    assert [round(step[embedding], 6) for step in alone] == [0.0015, 0.003, 0.003, 0.002]  # warmup, peak, min_lr
    ranks = run(2, rates, layouts, str(tmp_path))
    for index, layout in enumerate(layouts):
        for step, expected in enumerate(alone):
            held = {name: lr for rank in ranks for name, lr in rank[index][step].items()}
            assert held == expected, (layout.name, step)


ANY = ForwardFactors(1.0, 1.0, 1.0, 1.0)


def bounds(stages: int, method: str, layers: int = 6) -> tuple[list[str], list[int]]:
    described = config(num_layers=layers)
    names = [name for name, _ in layer_list(described, ANY)]
    return names, stage_bounds(names, shapes_at(described, described.widths, ANY), stages, method)


@pytest.mark.parametrize("method", ["uniform", "parameters", "type:transformer|mlp", "type:transformer"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_pipeline_has_every_layer_once(method: str, stages: int) -> None:
    names, cut = bounds(stages, method)
    assert cut[0] == 0 and cut[-1] == len(names) and cut == sorted(set(cut))
    blocks = [sum(name.startswith("layers.") for name in names[a:b]) for a, b in zip(cut, cut[1:])]
    assert len(cut) == stages + 1 and sum(blocks) == 6
    if method.startswith("type"):
        assert min(blocks) >= 1 and max(blocks) == -(-6 // stages)  # 6 blocks over 4 stages: at most 2


def test_the_parameters_method_counts_the_embedding() -> None:
    """A vocabulary with more parameters than all blocks fills the first stage."""
    described = config(num_layers=6, vocab_size=4000, padded_vocab_size=4000)
    names = [name for name, _ in layer_list(described, ANY)]
    shapes = shapes_at(described, described.widths, ANY)
    assert stage_bounds(names, shapes, 2, "parameters") == [0, 1, len(names)]
    with pytest.raises(ConfigError, match="matches no layer; the layer names are ParallelTransformerLayerPipe"):
        stage_bounds(names, shapes, 2, "type:no such layer")


def test_bad_methods() -> None:
    with pytest.raises(ConfigError, match="uniform, parameters or type"):
        bounds(2, "profile")
    with pytest.raises(ConfigError, match="is not a valid regular expression"):
        bounds(2, "type:(")


def test_a_tied_readout_also_holds_the_embedding() -> None:
    names = ["embedding.word_embeddings.weight", "layers.0.mlp.dense_4h_to_h.weight", "final_norm.weight"]
    assert stage_parameters(names, ["final_norm", "readout"], True) == [names[0], names[2]]
    assert stage_parameters(names, ["final_norm", "readout"], False) == [names[2]]
