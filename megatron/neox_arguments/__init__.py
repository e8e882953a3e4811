"""Configuration: NeoX's YAML files, read into one validated, frozen `NeoXArgs`.

Imports neither torch nor DeepSpeed, and has no side effects.
"""

from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.launcher import UsageRequested

__all__ = ["NeoXArgs", "UsageRequested"]
