"""Two hosts, Slurm on them, and what a run must have trained. All of it is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.hosts import Hosts, require_programs
from tests.clusters.runs import STEPS, Run
from tests.clusters.slurm import Slurm
from tests.training.harness import configuration, losses, make_corpus, train_processes


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    require_programs()
    hosts = Hosts(tmp_path_factory.mktemp("hosts") / "ssh")
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="session")
def slurm(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Slurm:
    return Slurm(hosts, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "text_document")


@pytest.fixture(scope="session")
def references(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[float]]:
    """Losses of the uninterrupted run in one process and in two, by the number of processes."""
    result = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"reference{count}")
        train_processes(count, configuration(corpus, folder / "log", train_iters=STEPS, eval_iters=0), folder)
        result[count] = losses(folder / "log")
    return result


@pytest.fixture
def make_run(hosts: Hosts, corpus: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes a run; at the end of the test none of its processes must be left."""
    runs: list[Run] = []

    def make(**changes: Any) -> Run:
        runs.append(Run(hosts, corpus, tmp_path, **changes))
        return runs[-1]

    yield make
    for run in runs:
        run.wait_for_end()
