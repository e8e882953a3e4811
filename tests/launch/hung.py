"""`train.py` with a fault on one rank, by the variable HANG.

sleep: rank 1 sleeps in its fourth step. mismatch: rank 1 starts another collective than rank 0 there. save: rank 0
needs long to save.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch

from megatron.training.objective import Objective
from megatron.training.run_checkpoints import Checkpoints

HANG, RANK = os.environ["HANG"], int(os.environ.get("RANK", "0"))
SECONDS = 9.0


def install() -> None:
    plain_loss, plain_save, count = Objective.loss, Checkpoints.save, 0

    def loss(self: Objective, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5 and RANK == 1 and HANG == "sleep":
            time.sleep(1000)
        if count == 5 and RANK == 1 and HANG == "mismatch":
            torch.distributed.recv(torch.zeros(1), src=0)
        return plain_loss(self, *arguments, **options)

    def save(self: Checkpoints, *arguments: Any) -> Any:
        if RANK == 0 and HANG == "save":
            time.sleep(SECONDS)
        return plain_save(self, *arguments)

    Objective.loss = loss  # type: ignore[method-assign]
    Checkpoints.save = save  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    install()
    from megatron.entry import run_script
    from muneox.worker.train import main

    sys.exit(run_script(main))
