"""Worker: train, save base shapes (`save-base-shapes: true`) or run the coordinate check (`coord-check: true`).

python train.py configs/mup/base.yml configs/local_setup.yml [--key value ...]
torchrun --nproc-per-node 2 train.py configs/mup/base.yml configs/local_setup.yml
"""

from __future__ import annotations

import sys

from megatron.entry import run_script
from muneox.worker.train import main

if __name__ == "__main__":
    sys.exit(run_script(main))
