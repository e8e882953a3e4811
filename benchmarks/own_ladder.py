"""Predicts width 512 from widths up to 256, in muP and SP. The forecast is registered before the target is trained.

    python benchmarks/own_ladder.py --workers 2

The models have 3 layers and train on bytes of the default corpus for 400 steps of 8 x 128. Each parametrization uses
the hyperparameters that its search at width 64 found. The forecast is written once, before the target's runs are
trained and compared with it. A ladder that no decreasing law agrees with, which can happen for SP, gets no forecast. A
restart continues. The exit code is 1 if muP's target is outside the interval, or if the forecast is off by 1 % or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from _family import configuration, make_corpus, space, write

from megatron.errors import DataError
from muneox.commands import predict_loss, search, sweep
from muneox.runs import read_runs
from muneox.runs.align import last

# More steps than the other benchmarks: after 200 steps seeds differ by 0.9 %, as much as doubling the width gains.
OWN = {"warmup": 0.1}


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_ladder"))
    parser.add_argument("--data", type=Path, default=Path("data/corpus_bytes"), help="prepared if missing")
    parser.add_argument("--trials", type=int, default=24, help="trials of each search at width 64")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128, 192, 256])
    parser.add_argument("--target-width", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iters", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(input_args)
    make_corpus(options.data)
    data = options.data.resolve()
    shared = ["--seeds", *map(str, options.seeds), "--workers", str(options.workers)]
    kept = {}
    for name in ("mup", "sp"):
        folder, use_mup = options.out / name, name == "mup"
        forecast = folder / "forecast.json"
        recipe = {"use_mup": use_mup, "iters": options.iters, "data": data}
        model = write(folder / "model.yml", configuration(**recipe) | OWN)
        target = write(folder / "target.yml", configuration(**recipe, width=options.target_width) | OWN)
        varied = write(folder / "space.yml", space(use_mup))
        print(f"\n== {name}: the search", flush=True)
        search.main([
            str(model), "--space", str(varied), "--trials", str(options.trials), "--confirm", "2", "--confirm-top", "4",
            "--workers", str(options.workers), "--out", str(folder / "search"),
        ])  # fmt: skip
        tuned = [str(model), str(folder / "search" / "best.yml")]
        print(f"\n== {name}: the ladder", flush=True)
        sweep.main([
            *tuned, "--widths", *map(str, options.widths), *shared, "--out", str(folder / "ladder")
        ])  # fmt: skip
        if not forecast.exists():
            try:
                predict_loss.main([
                    str(folder / "ladder"), "--x", "params", "--y", "valid/loss", "--target-config", str(target),
                    "--save", str(forecast), "--plot", str(folder / "forecast.png"),
                ])  # fmt: skip
            except DataError as error:
                print(f"{name}: no forecast: {error}")
        print(f"\n== {name}: the target", flush=True)
        at = ["--widths", str(options.target_width)]
        sweep.main([*tuned, *at, *shared, "--out", str(folder / "target")])
        seen = mean(last(run, "valid/loss")[1] for run in read_runs([str(folder / "target")]))
        if not forecast.exists():
            print(f"{name}: mean of the seeds {seen:.4f}, no forecast")
            continue
        inside = predict_loss.main(["--check", str(forecast), str(folder / "target")]) == 0
        predicted = json.loads(forecast.read_text())["targets"][0]["prediction"]
        off = predicted / seen - 1
        print(f"{name}: mean of the seeds {seen:.4f}, forecast {predicted:.4f}: {off:+.2%}")
        kept[name] = inside and abs(off) < 0.01
    return int(not kept.get("mup"))


if __name__ == "__main__":
    sys.exit(main())
