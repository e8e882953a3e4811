"""Published runs as arrays: every table of the data folder, and the laws that its runs can be fitted with."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron.errors import DataError
from muneox.scaling.compute import training_flops

Array = NDArray[np.float64]
TOKENS = "throughput/total_tokens"  # of OLMo's tables
OPENLM_LOSSES = ("loss_c4_val", "loss_paloma_falcon_refinedweb", "loss_val_de_en_100")  # of eight, which are alike
TRAINED_13B = 5e12  # tokens
FEWEST = 5  # runs of a ladder: four to fit and one to predict
SAME = 1.1  # tokens, or tokens per parameter, within this factor count as constant


@dataclass(frozen=True)
class Runs:
    """Runs of one table with one loss, in order of compute. All arrays are [n].

    dataset: tables of one dataset are left out together. laws: size, compute or surface. weight: 1 / the number of
    losses of the same runs (for OpenLM also of corpora), so that runs with many losses do not count more.
    """

    dataset: str
    name: str
    laws: tuple[str, ...]
    params: Array
    flops: Array
    loss: Array
    tokens: Array | None = None
    weight: float = 1.0


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} is missing")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: Sequence[dict[str, str]], name: str) -> Array:
    return np.array([float(row[name]) for row in rows])


def where(rows: Sequence[dict[str, str]], **values: str) -> list[dict[str, str]]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def all_runs(data: Path) -> list[Runs]:
    """The runs of every table in the folder that a law of size, compute or both can be fitted to."""
    found: list[Runs] = []
    for path in sorted(data.glob("*.csv")):
        rows = read(path)
        if rows and {"params", "loss"} <= set(rows[0]):
            found.append(_plain(path, rows))
    for name, reader in SPECIAL.items():
        if (data / name).is_file():
            found += [runs for runs in reader(data / name) if len(runs.loss) >= FEWEST]
    if not found:
        raise DataError(f"{data} has no table of runs; a table has the columns params and loss")
    return found


def _plain(path: Path, rows: Sequence[dict[str, str]]) -> Runs:
    """A table with the columns params and loss, and optionally tokens and flops.

    The part of its name before the first underscore is the dataset.
    """
    params, has = column(rows, "params"), set(rows[0])
    tokens = column(rows, "tokens") if "tokens" in has else None
    flops = column(rows, "flops") if "flops" in has else None
    dataset = path.stem.partition("_")[0]
    return make_runs(dataset, path.stem, params, column(rows, "loss"), tokens=tokens, flops=flops)


def make_runs(
    dataset: str,
    name: str,
    params: Array,
    loss: Array,
    *,
    tokens: Array | None = None,
    flops: Array | None = None,
    weight: float = 1.0,
) -> Runs:
    """The runs with the laws that they allow.

    Runs are a ladder if the size grows with the FLOPs. A ladder with equal tokens, or tokens in proportion to the size,
    has L(N). Runs whose FLOPs are known have L(C). Runs that are not a ladder have L(N, D) and L(C). FLOPs default to
    6 N D; without tokens they are in proportion to the parameters.
    """
    known = flops is not None
    if flops is None:
        flops = params if tokens is None else training_flops(params, tokens)
    order = np.argsort(flops)
    ladder = bool((np.diff(params[order]) > 0).all())
    if not ladder:
        laws: tuple[str, ...] = ("compute", "surface")
    elif tokens is None or any(values.max() <= SAME * values.min() for values in (tokens, tokens / params)):
        laws = ("size", "compute") if known else ("size",)
    else:
        laws = ("compute",)
    kept = None if tokens is None else tokens[order]
    return Runs(dataset, name, laws, params[order], flops[order], loss[order], kept, weight)


def _mu_scaling(path: Path) -> Iterator[Runs]:
    rows = read(path)
    yield make_runs("mu-scaling", "20k steps", column(rows, "params_M") * 2**20, column(rows, "train_loss_20k"))


def _nanolm(path: Path) -> Iterator[Runs]:
    rows = read(path)
    for series, step in dict.fromkeys((row["series"], row["step"]) for row in rows):
        some = where(rows, series=series, step=step)
        yield make_runs("nanolm", f"{series} {step}", column(some, "N_millions") * 1e6, column(some, "loss"))


def _olmo(path: Path) -> Iterator[Runs]:
    """The ladder by tokens per parameter, and as a surface with its 7B and 13B targets."""
    rows = where(read(path), rerun="False")
    metrics = [key for key in rows[0] if key.startswith("eval/")]
    for metric in metrics:
        weight, label = 1 / len(metrics), metric.split("/")[-2 if "CrossEntropy" in metric else -1]
        for multiple in dict.fromkeys(row["chinchilla_mult"] for row in rows):
            some = where(rows, chinchilla_mult=multiple)
            size, tokens, loss = (column(some, key) for key in ("N", TOKENS, metric))
            yield make_runs("olmo", f"{label} {float(multiple):g}x", size, loss, tokens=tokens, weight=weight)
        size, tokens, loss = olmo_surface(path.parent, rows, metric)
        yield make_runs("olmo", label, size, loss, tokens=tokens, weight=weight)


def olmo_surface(folder: Path, rows: Sequence[dict[str, str]], metric: str) -> tuple[Array, Array, Array]:
    """Size, tokens and loss of OLMo's ladder, the 7B run, and the mean of the last checkpoints of the 13B run."""
    seven, thirteen = read(folder / "target_7B-4T.csv"), read(folder / "target_13B-5T.csv")[1:]
    size = np.concatenate([column(rows, "N"), column(seven, "N"), column(thirteen, "N")[:1]])
    tokens = np.concatenate([column(rows, TOKENS), column(seven, TOKENS), [TRAINED_13B]])
    loss = np.concatenate([column(rows, metric), column(seven, metric), [column(thirteen, metric).mean()]])
    return size, tokens, loss


def _openlm(path: Path) -> Iterator[Runs]:
    """OpenLM by corpus as a surface. Batch size and, for the largest, learning rate change along the sizes."""
    rows = read(path)
    corpora = list(dict.fromkeys(row["dataset"] for row in rows))
    for corpus in corpora:
        some = where(rows, dataset=corpus)
        for metric in OPENLM_LOSSES:
            size, tokens, loss = (column(some, key) for key in ("N", "D", metric))
            label, weight = f"{corpus} {metric}", 1 / len(OPENLM_LOSSES) / len(corpora)
            yield make_runs("openlm", label, size, loss, tokens=tokens, weight=weight)


def _gemstone(path: Path) -> Iterator[Runs]:
    rows = read(path)
    size, tokens = column(rows, "params_active_precise"), column(rows, "tokens")
    yield make_runs("gemstone", "cooled down", size, column(rows, "final_loss"), tokens=tokens)


def _lambada(path: Path) -> Iterator[Runs]:
    """Cross-entropy of LAMBADA's last word at the end of Pythia's runs."""
    rows = where(read(path), step="143000")
    for deduplicated in (False, True):
        some = [row for row in rows if row["model"].endswith("-deduped") == deduplicated]
        sizes = np.array([_named_size(row["model"]) for row in some])
        label = "LAMBADA deduplicated" if deduplicated else "LAMBADA"
        yield make_runs("pythia", label, sizes, np.log(column(some, "lambada_ppl")), weight=1 / 2)


def _named_size(name: str) -> float:
    found = re.search(r"-([\d.]+)([mb])\b", name)
    if found is None:
        raise DataError(f"the model name {name} has no size")
    return float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]]


SPECIAL = {
    "mu_scaling.csv": _mu_scaling,
    "nanolm.csv": _nanolm,
    "olmo_ladder/finals.csv": _olmo,
    "openlm_overtraining/runs.csv": _openlm,
    "gemstone/wandb_df_for_fitting_cool_end.csv": _gemstone,
    "pythia/lambada.csv": _lambada,
}
