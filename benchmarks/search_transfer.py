"""Compares a search on a small proxy with a direct search at the target's width, in muP and SP.

    python benchmarks/search_transfer.py --out runs/search_transfer --workers 2

The models are byte-level with 3 layers, head dimension 32, sequence length 128 and batch size 8. Four searches run with
equal numbers of trials: muP and SP, at the width of the proxy and of the target. The four winners then train at the
target's width with other seeds. Each search is a study file in --out, and a restart continues it.

muP searches the space of configs/mup/space.yml. SP searches learning rate and init std over the same factors. Equal
numbers of trials draw equal points. The direct search therefore includes the proxy's winner among its trials and cannot
lose to it by bad luck.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from _family import BASE_WIDTH, configuration, make_corpus, space, write

from muneox.search.progress import Usage, value_text
from muneox.search.stages import ranked
from muneox.search.storage import open_storage

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment."""

    out: Path
    data: Path
    target_width: int
    trials: int
    sp_trials: int
    iters: int
    final_seeds: tuple[int, ...]
    workers: int


def search(plan: Plan, name: str, parametrization: str, width: int, over: dict[str, Any], trials: int) -> optuna.Study:
    """Run or resume one search as a user would. Returns its study."""
    folder = plan.out / name
    write(folder / "model.yml", configuration(plan.data, plan.iters, width, parametrization == "mup"))
    write(folder / "space.yml", over)
    files = ("--space", folder / "space.yml", "--out", folder)
    command = [sys.executable, ROOT / "tools/mup/search.py", folder / "model.yml", *files]
    numbers = ("--trials", trials, "--workers", plan.workers)
    print(f"\n== {name}: {trials} trials at width {width}", flush=True)
    subprocess.run([*map(str, command), *map(str, numbers)], check=True, cwd=ROOT)
    return optuna.load_study(study_name="search", storage=open_storage(str(folder / "study.db"))[0])


def final(plan: Plan, name: str, parametrization: str, study: optuna.Study) -> tuple[float, list[float]]:
    """Train a study's winner at the target's width with the final seeds. Returns the mean and the loss per seed."""
    best = ranked(study.get_trials())[0]
    over = {
        "sampler": "grid",
        "seeds": list(plan.final_seeds),
        "parameters": {key: [value] for key, value in best.params.items()},
    }
    [trial] = search(plan, f"{name}-final", parametrization, plan.target_width, over, 1).get_trials()
    losses = [run["loss"] for run in trial.user_attrs["runs"].values()]
    return (trial.value if trial.value is not None else math.inf), losses


def row(label: str, study: optuna.Study, result: tuple[float, list[float]], reference: float) -> str:
    usage, best = Usage.of(study.get_trials()), ranked(study.get_trials())[0]
    params = ", ".join(f"{key} {value_text(value)}" for key, value in best.params.items())
    seeds = ", ".join(f"{loss:.4f}" for loss in result[1])
    return (
        f"| {label} | {best.value:.4f} | **{result[0]:.4f}** ({seeds}) | {result[0] / reference - 1:+.2%} "
        f"| {usage.flops:.3g} | {usage.seconds:,.0f} | {params} |"
    )


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/search_transfer"))
    parser.add_argument("--data", type=Path, default=Path("data/corpus_bytes"), help="prepared if missing")
    parser.add_argument("--target-width", type=int, default=256)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument(
        "--sp-trials", type=int, help="trials of SP's searches, with two parameters (default: --trials)"
    )
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--final-seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(input_args)
    plan = Plan(
        **{
            **vars(given),
            "out": given.out.resolve(),
            "data": given.data.resolve(),
            "sp_trials": given.sp_trials or given.trials,
            "final_seeds": tuple(given.final_seeds),
        }
    )
    make_corpus(plan.data)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies, results = {}, {}
    for parametrization in ("mup", "sp"):
        for role, width in (("proxy", BASE_WIDTH), ("direct", plan.target_width)):
            name = f"{parametrization}-{role}"
            trials = plan.trials if parametrization == "mup" else plan.sp_trials
            studies[name] = search(plan, name, parametrization, width, space(parametrization == "mup"), trials)
            results[name] = final(plan, name, parametrization, studies[name])
    reference = results["mup-direct"][0]
    print(
        f"\nwidth {BASE_WIDTH} -> {plan.target_width}, {plan.trials} trials each (SP {plan.sp_trials}), "
        f"{plan.iters} steps, losses in nats per byte\n"
    )
    print(
        f"| search | best of the search | winner at {plan.target_width}, mean of seeds | against muP direct "
        "| FLOPs | seconds | winner |"
    )
    print("|---|---|---|---|---|---|---|")
    labels = {"proxy": f"at {BASE_WIDTH}, transferred", "direct": f"at {plan.target_width}, direct"}
    for name, study in studies.items():
        parametrization, role = name.split("-")
        print(row(f"{'muP' if parametrization == 'mup' else 'SP'} {labels[role]}", study, results[name], reference))
    cost = [Usage.of(studies[name].get_trials()) for name in ("mup-proxy", "mup-direct")]
    print(
        f"\nmuP transferred is {results['mup-proxy'][0] / reference - 1:+.2%} from direct, for "
        f"{cost[0].flops / cost[1].flops:.1%} of its FLOPs and {cost[0].seconds / cost[1].seconds:.1%} of its seconds; "
        f"against SP's best at {plan.target_width}: {results['mup-proxy'][0] / results['sp-direct'][0] - 1:+.2%}; "
        f"SP transferred is {results['sp-proxy'][0] / results['sp-direct'][0] - 1:+.2%} from SP direct"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
