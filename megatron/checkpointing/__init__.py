"""Save, load and verify checkpoints in GPT-NeoX's layout. A process killed at any moment damages no checkpoint."""

from megatron.checkpointing.folder import check_own_folder, folder_lock
from megatron.checkpointing.integrity import verify
from megatron.checkpointing.layout import step_directories
from megatron.checkpointing.load import (
    LoadedCheckpoint,
    LoadedWeights,
    find_intact,
    has_no_manifest,
    load_weights,
    read_header,
)
from megatron.checkpointing.neox import Assembly, NeoxCheckpoint, is_neox
from megatron.checkpointing.reshard import Target
from megatron.checkpointing.save import PendingSave, begin_save
from megatron.checkpointing.schedule import save_iterations
from megatron.checkpointing.unchanged import check_unchanged
from megatron.checkpointing.whole import Layout, WholeCheckpoint
from megatron.forwarding import forward_names

# GPT-NeoX's functions. Those of this package, which take an engine, are in its modules `save` and `load`.
__getattr__ = forward_names(__name__, dict.fromkeys(("load_checkpoint", "save_checkpoint"), "megatron.gpt_neox"))

__all__ = [
    "Assembly",
    "Layout",
    "LoadedCheckpoint",
    "LoadedWeights",
    "NeoxCheckpoint",
    "PendingSave",
    "Target",
    "WholeCheckpoint",
    "begin_save",
    "check_own_folder",
    "check_unchanged",
    "find_intact",
    "folder_lock",
    "has_no_manifest",
    "is_neox",
    "load_weights",
    "read_header",
    "save_iterations",
    "step_directories",
    "verify",
]
