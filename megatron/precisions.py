"""Types of torch for the values of the key `precision`."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bfloat16": torch.bfloat16, "fp16": torch.float16}
