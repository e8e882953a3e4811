"""The coordinate check under tensor, pipeline and ZeRO layouts gives the slopes of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from muneox.development.layouts import Layout, configuration, make_corpus
from tests.mpu.distributed import run

pytestmark = [pytest.mark.xdist_group("multiprocess"), pytest.mark.slow]

UNTIED = "GPT, untied"


def slopes(layout: Layout, folder: str) -> tuple[bool, bool, dict[str, float]]:
    """Whether muP passes, whether SP fails, and the slopes of muP by module, statistic and t."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import coordinate_check_config
    from megatron.training.coord_check_run import CoordinateCheck
    from mup.slopes import verdict

    # the number of heads grows with the width; the base has two, divisible by two ranks
    model = {"hidden_size": 32, "num_attention_heads": 2, "mup_base_hidden_size": 32, "mup_base_num_attention_heads": 2}
    config = {**configuration(layout, Path(folder) / "corpus", 4), **model, "num_layers": 2}
    config |= {"coord_check": True, "coord_check_widths": [32, 64, 128, 256], "coord_check_seeds": 3}
    args = NeoXArgs.from_dict(config, world_size=layout.world_size)
    check = CoordinateCheck(
        coordinate_check_config(args), initialize_megatron("gloo", args.seed, layout.tensor, layout.pipe)
    )
    up, sp = check.records(use_mup=True), check.records(use_mup=False)
    outcome = verdict(up, reference=sp)
    found = {f"{row.module} {row.statistic} {row.t}": row.slope for row in outcome.rows}
    return outcome.passed, not verdict(sp).passed, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("coordinates")
    make_corpus(folder / "corpus")
    passed, sp_fails, found = run(1, slopes, Layout(UNTIED), str(folder), timeout=400)[0]
    assert passed and sp_fails
    return folder, found


@pytest.mark.parametrize(
    "layout",
    [Layout(UNTIED, tensor=2), Layout(UNTIED, pipe=2), Layout(UNTIED, data=2, zero=1)],
    ids=lambda layout: layout.name,
)
def test_the_same_slopes(layout: Layout, alone: tuple[Path, dict[str, float]]) -> None:
    folder, expected = alone
    results = run(2, slopes, dataclasses.replace(layout), str(folder), timeout=500)
    for passed, sp_fails, found in results:
        assert passed and sp_fails
        assert found.keys() == expected.keys()
        assert max(abs(found[name] - slope) for name, slope in expected.items()) < 0.005
