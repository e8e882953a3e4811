"""Matrix products of groups of rows with one matrix per group."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# One kernel for all groups. torch has it from 2.10 on; its fast kernel is for bfloat16.
_grouped_mm: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
_ALIGNMENT = 8  # elements of bfloat16 in the 16 bytes that every row must be a multiple of


def uses_one_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_linear` calls torch's grouped product, which needs a GPU, bfloat16 and aligned rows."""
    aligned = not any(size % _ALIGNMENT for size in weight.shape[1:])
    return _grouped_mm is not None and x.is_cuda and x.dtype == weight.dtype == torch.bfloat16 and aligned


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply the first counts[0] rows of x by weight[0], the next counts[1] by weight[1], and so on.

    x: [m, in], weight: [n, out, in], counts: int64 [n], which adds up to m -> [m, out]. Groups can be empty.
    Without torch's grouped product the groups are multiplied one by one, and a GPU waits for the counts. On the meta
    device, where counts are unknown, the groups have equal sizes.
    """
    if _grouped_mm is not None and uses_one_kernel(x, weight):
        return _grouped_mm(x, weight.transpose(-2, -1), offs=counts.cumsum(0).int())
    groups = x.tensor_split(len(counts)) if counts.is_meta else x.split(counts.tolist())
    return torch.cat([F.linear(rows, matrix) for rows, matrix in zip(groups, weight.unbind(), strict=True)])
