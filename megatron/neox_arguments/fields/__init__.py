"""The keys, grouped as GPT-NeoX groups them; `NeoXArgs` inherits every group."""

from megatron.neox_arguments.fields.deepspeed import NeoXArgsDeepspeedConfig, NeoXArgsDeepspeedRunner
from megatron.neox_arguments.fields.logging import NeoXArgsLogging
from megatron.neox_arguments.fields.model import NeoXArgsModel
from megatron.neox_arguments.fields.mup import NeoXArgsMup
from megatron.neox_arguments.fields.optimizer import NeoXArgsLRScheduler, NeoXArgsOptimizer
from megatron.neox_arguments.fields.other import NeoXArgsOther, NeoXArgsParallelism, NeoXArgsTokenizer
from megatron.neox_arguments.fields.posttraining import NeoXArgsMoE, NeoXArgsPosttraining
from megatron.neox_arguments.fields.textgen import NeoXArgsTextgen
from megatron.neox_arguments.fields.training import NeoXArgsTraining

GROUPS = (
    NeoXArgsModel,
    NeoXArgsMup,
    NeoXArgsOptimizer,
    NeoXArgsLRScheduler,
    NeoXArgsTraining,
    NeoXArgsTokenizer,
    NeoXArgsParallelism,
    NeoXArgsLogging,
    NeoXArgsTextgen,
    NeoXArgsDeepspeedConfig,
    NeoXArgsDeepspeedRunner,
    NeoXArgsOther,
    NeoXArgsPosttraining,
    NeoXArgsMoE,
)

__all__ = ["GROUPS", *(group.__name__ for group in GROUPS)]
