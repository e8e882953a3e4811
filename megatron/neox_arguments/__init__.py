"""Read GPT-NeoX's YAML files into one validated, frozen configuration, `NeoXArgs`.

Importing this package imports neither torch nor DeepSpeed and has no side effects.
"""

from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.launcher import UsageRequested

__all__ = ["NeoXArgs", "UsageRequested"]
