"""Ladders whose runs have no configuration: TensorBoard event files with sizes from a table or from the names."""

from __future__ import annotations

import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron.errors import ConfigError, DataError
from muneox.commands.predict_loss import main
from muneox.runs import Run
from muneox.scaling.ladder import Selection, read_points
from muneox.scaling.side_table import with_sizes

SIZES = {"gpt-10M": 10e6, "gpt-0.03B": 30e6, "gpt_100m": 100e6, "gpt 300 M": 300e6, "gpt-1.2B-seed3": 1.2e9}


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """One folder of event files per size, as TensorBoard's writer makes them. Without hyperparameters."""
    root = tmp_path_factory.mktemp("boards")
    for name, size in SIZES.items():
        with SummaryWriter(str(root / name)) as writer:
            for step in (1, 2, 3):
                writer.add_scalar("loss", 2 + 40 * size**-0.2 + 1 / step, step)
    return root


def test_sizes_come_from_a_table_next_to_the_runs(boards, tmp_path):
    table = tmp_path / "sizes.csv"
    table.write_text("name,params,width\n" + "".join(f"{n},{s / 1e6:g}M,64\n" for n, s in SIZES.items()))
    points, _ = read_points([str(boards)], Selection("params", "loss", sizes=str(table)))
    assert {p.name: p.x for p in points} == pytest.approx(SIZES)
    with pytest.raises(DataError, match="no configuration value `params`"):
        read_points([str(boards)], Selection("params", "loss"))
    table.write_text("name,params\ngpt-10M,1e7\n")
    with pytest.raises(DataError, match=r"sizes.csv has no row for the run gpt.*its column `name` has gpt-10M"):
        read_points([str(boards)], Selection("params", "loss", sizes=str(table)))
    table.write_text("model,params\ngpt-10M,1e7\n")
    with pytest.raises(DataError, match="has no column `name` with the names of the runs; it has model, params"):
        read_points([str(boards)], Selection("params", "loss", sizes=str(table)))


def test_the_command_reads_sizes_from_names(boards, capsys):
    assert main([str(boards), "--y", "loss", "--sizes", "name", "--target", "7e9"]) == 0
    assert "7B parameters" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--sizes sizes.txt: expected `name`, or a table"):
        main([str(boards), "--y", "loss", "--sizes", "sizes.txt", "--target", "7e9"])


@pytest.mark.parametrize(
    ("name", "what"),
    [("gpt", "no size"), ("m3", "no size"), ("v10mb", "no size"), ("10M-to-30M", "more than one size")],
)
def test_a_name_without_one_size_is_an_error(name, what):
    with pytest.raises(DataError, match=f"the name of the run {name} has {what}"):
        with_sizes([Run(name, "here")], "name")


def test_a_row_can_have_the_id_and_takes_precedence(tmp_path):
    table = tmp_path / "sizes.tsv"
    table.write_text("run\tparams\nabc\t1.5B\n")
    (run,) = with_sizes([Run("some name", "here", config={"params": 3, "lr": 1}, run_id="abc")], str(table))
    assert run.config == {"params": 1.5e9, "lr": 1}
