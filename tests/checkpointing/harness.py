"""A small training run on a real DeepSpeed engine, with a loss that depends on everything a checkpoint restores.

Tests with one rank call it in the test process. Tests with several ranks, or that kill the run, start
`python -m tests.checkpointing.harness SCENARIO ...`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from megatron.checkpointing.load import load_checkpoint
from megatron.checkpointing.save import save_checkpoint
from megatron.errors import CheckpointError
from tests.training.harness import free_port

BATCH, WIDTH = 4, 8
MUP = {"base": {"hidden_size": 8}, "embedding_mult": 1.0, "lr_mult": {"hidden": 0.5, "vector": 1.0}}
CONFIGS = {"base.yml": "hidden-size: 8\n"}


class Schedule:
    """Warmup of a base learning rate. The rate of each group is the base rate times its lr_mult."""

    def __init__(self, optimizer: Any, base: float) -> None:
        self.optimizer, self.base, self.steps = optimizer, base, 0

    def step(self, **_: Any) -> None:
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.base * min(1.0, self.steps / 5) * group["lr_mult"]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]


def initialise(rank: int = 0, world_size: int = 1, port: int | None = None) -> None:
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):
        import deepspeed
        from deepspeed.utils import logger
    logger.setLevel(logging.ERROR)
    if not torch.distributed.is_initialized():
        url = f"tcp://127.0.0.1:{port or free_port()}"
        torch.distributed.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
    # Skip the shared-memory collective: it takes a minute to compile, and no test here needs it.
    with mock.patch("deepspeed.comm.torch.build_shm_op", return_value=None):
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def build_engine(stage: int = 0, precision: str = "fp32", seed: int = 1, width: int = WIDTH) -> Any:
    import deepspeed

    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder(seed)
    first, last = torch.nn.Linear(WIDTH, width), torch.nn.Linear(width, 1)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.Dropout(0.2), last)
    groups = [
        {"name": "hidden", "lr_mult": 0.5, "params": [first.weight, last.weight]},
        {"name": "vector", "lr_mult": 1.0, "params": [first.bias, last.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    world_size = torch.distributed.get_world_size()
    config: dict[str, Any] = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // world_size,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    schedule = Schedule(optimizer, 1e-2)
    with mock.patch.dict(os.environ, {"LOCAL_RANK": str(torch.distributed.get_rank())}):
        return deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)[0]


def train_step(engine: Any, iteration: int) -> str:
    """Take one optimizer step on the batch of `iteration`. Returns the loss in hexadecimal, to compare bits."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = torch.Generator().manual_seed(iteration)
    inputs = torch.randn(BATCH, WIDTH, generator=data).chunk(world_size)[rank]
    noise = random.random() + np.random.rand()  # Python's and NumPy's generators; dropout uses torch's
    dtype = next(engine.module.parameters()).dtype
    loss = (engine(inputs.to(dtype)).float() - inputs.sum(1, keepdim=True) - noise).pow(2).mean()
    engine.backward(loss)
    engine.step()
    return float(loss.detach()).hex()


def save(engine: Any, save_dir: Path, iteration: int, **options: Any) -> Path:
    state = {"consumed_samples": iteration * BATCH, "mup": MUP}
    rank_state = {"rank": torch.distributed.get_rank()}
    return save_checkpoint(
        engine,
        save_dir,
        iteration,
        client_state=state,
        config_files=CONFIGS,
        rank_state=rank_state,
        **options,
    )


def train(
    engine: Any, start: int, stop: int, save_dir: Path | None = None, every: int = 1, **options: Any
) -> dict[int, str]:
    """Train iterations start + 1 ... stop and save after every `every`-th. Returns the losses by iteration."""
    losses = {}
    for iteration in range(start + 1, stop + 1):
        losses[iteration] = train_step(engine, iteration)
        if save_dir is not None and iteration % every == 0:
            save(engine, save_dir, iteration, **options)
    return losses


def launch(scenario: str, save_dir: Path, *arguments: str, world_size: int = 1) -> list[subprocess.Popen[str]]:
    """Start `world_size` processes that run a scenario of this file."""
    command = [sys.executable, "-m", "tests.checkpointing.harness", scenario, str(save_dir), *arguments]
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "PORT": port}
        env.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONUNBUFFERED="1")
        root = Path(__file__).resolve().parents[2]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=env, cwd=root, **options))
    return processes


def results(processes: list[subprocess.Popen[str]], timeout: float = 300) -> list[list[Any]]:
    """JSON lines that each process printed. Fails if a process did not exit with 0."""
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err[-3000:]
        outputs.append([json.loads(line) for line in out.splitlines() if line.startswith(("{", "[", '"'))])
    return outputs


def scenario_resume(save_dir: Path, options: argparse.Namespace) -> None:
    """Resume from the last checkpoint, save after each step, and print each loss immediately."""
    engine = build_engine(options.stage, seed=1)
    loaded = load_checkpoint(engine, save_dir, mup=MUP)
    start = loaded.iteration if loaded else 0
    print(json.dumps({"start": start}))
    for iteration in range(start + 1, options.stop + 1):
        print(json.dumps({"iteration": iteration, "loss": train_step(engine, iteration)}))
        save(engine, save_dir, iteration, keep_last_n=2)


def scenario_agree(save_dir: Path, options: argparse.Namespace) -> None:
    """Save, fail to save on rank 1 only, continue training; then load and repeat the last steps."""
    rank = torch.distributed.get_rank()
    engine = build_engine(options.stage)
    losses = train(engine, 0, 4, save_dir, every=4)
    error = ""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        save(engine, save_dir, 5)
    except CheckpointError as caught:
        error = str(caught)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = sorted(path.name for path in save_dir.iterdir())
    losses |= train(engine, 4, 8)
    fresh = build_engine(options.stage, seed=2)
    loaded = load_checkpoint(fresh, save_dir, mup=MUP)
    assert loaded is not None
    again = train(fresh, loaded.iteration, 8)
    own = loaded.rank_state["rank"]
    print(json.dumps({"losses": losses, "again": again, "error": error, "left": left, "rank_state": own}))


def scenario_load(save_dir: Path, options: argparse.Namespace) -> None:
    """Try to load, and print the iteration or the error."""
    try:
        loaded = load_checkpoint(build_engine(options.stage, seed=2), save_dir)
        print(json.dumps({"iteration": loaded and loaded.iteration}))
    except CheckpointError as error:
        print(json.dumps({"error": str(error)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario")
    parser.add_argument("save_dir", type=Path)
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--stop", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    initialise(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["PORT"]))
    globals()[f"scenario_{options.scenario}"](options.save_dir, options)


if __name__ == "__main__":
    main()
