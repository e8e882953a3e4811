"""Data sets are verified and built by the first process, and mapped by the others. Real processes over gloo."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import DataError
from tests.mpu.distributed import run

SAMPLES = (60, 8, 0)


def corpora(folder: Path, number: int = 3) -> list[str]:
    prefixes = []
    for i in range(number):
        with IndexedDatasetBuilder(folder / f"c{i}", "i4") as builder:
            for document in range(20):
                builder.add_item(np.arange(12) + 100 * document + 10_000 * i)
                builder.end_document()
            builder.finalize()
        prefixes.append(str(folder / f"c{i}"))
    return prefixes


def build(prefixes: list[str], runtime: Any) -> Any:
    from megatron.neox_arguments.run_config import DataConfig
    from megatron.training.data import build_datasets

    fields = {field.name: None for field in dataclasses.fields(DataConfig)}
    split = type("Split", (), {"paths": prefixes, "weights": [1.0 + i for i in range(len(prefixes))], "labels": None})
    config: Any = type("Config", (), fields | {"train": split, "valid": split, "test": split})
    config.split, config.seq_length, config.seed, config.packing, config.allow_chopped = "1", 8, 1, "packed", True
    config.weight_by_num_documents, config.weighted_sampler_alpha = False, 1.0
    return build_datasets(config, runtime, 1 << 20, SAMPLES)


def in_process(prefixes: list[str], largest: int | None = None, own_disk: bool = False) -> dict[str, Any]:
    """What this process did to build the data: files it verified and opened, and its samples or its error."""
    from megatron.data import blend_order, index_cache, open_files
    from megatron.initialize import initialize_megatron
    from megatron.training import shared

    runtime = initialize_megatron("gloo")
    if largest is not None:
        shared._LARGEST = largest
    calls = {"verified": 0, "hashed": 0, "blended": 0}

    def counted(module: Any, name: str, what: str) -> None:
        function = getattr(module, name)

        def count(*args: Any, **keys: Any) -> Any:
            calls[what] += 1
            return function(*args, **keys)

        setattr(module, name, count)

    counted(IndexedDataset, "_verify", "verified")
    counted(index_cache, "_hashes", "hashed")
    counted(blend_order, "order_by_parts", "blended")
    if own_disk and runtime.rank > 0:
        from megatron.data.gpt_dataset import GPTDataset

        answers = itertools.chain([False], itertools.repeat(True))  # no for the data of the first process
        changed: Any = GPTDataset
        changed.files_exist = lambda dataset: next(answers)
    try:
        train, valid, test = build(prefixes, runtime)
    except DataError as error:
        return {"error": str(error)}
    opened = len(open_files._opened)
    samples = [train[i].tolist() for i in range(len(train))] + [valid[i].tolist() for i in range(len(valid))]
    return calls | {"opened": opened, "samples": samples, "test": test}


@pytest.mark.parametrize("size", [2, 4])
def test_only_the_first_process_verifies_and_builds(tmp_path: Path, size: int) -> None:
    prefixes = corpora(tmp_path)
    [alone] = run(1, in_process, prefixes)
    for path in (tmp_path / "index_cache").iterdir():
        path.rename(tmp_path / path.name)  # the cache is empty
    for attempt in ("built", "cached"):
        first, *others = run(size, in_process, prefixes)
        assert first["verified"] > 0 and first["hashed"] > 0
        assert first["blended"] == (2 if attempt == "built" else 0), "the blends of train and valid"
        for other in others:
            assert (other["verified"], other["hashed"], other["blended"], other["opened"]) == (0, 0, 0, 0)
            assert other["samples"] == first["samples"] == alone["samples"]


def test_a_missing_file_is_an_error_of_every_process(tmp_path: Path) -> None:
    prefixes = corpora(tmp_path)
    Path(f"{prefixes[1]}.bin").unlink()
    for outcome in run(2, in_process, prefixes):
        assert "c1.bin does not exist" in outcome["error"]


def test_one_process_of_a_host_with_its_own_disk_builds(tmp_path: Path) -> None:
    first, *others = run(3, in_process, corpora(tmp_path), None, True)
    assert all(other["samples"] == first["samples"] for other in others)
    assert sorted(other["verified"] > 0 for other in others) == [False, True]


def test_data_too_large_to_send_is_built_by_every_process(tmp_path: Path) -> None:
    first, other = run(2, in_process, corpora(tmp_path), 10)
    assert other["samples"] == first["samples"] and other["verified"] > 0
