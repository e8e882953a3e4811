"""Names inside a save directory: GPT-NeoX's layout, and the temporary names used during a save.

<save_dir>/latest                       the step to resume from, for example "global_step100"
<save_dir>/global_step100/...           a complete checkpoint, with `manifest.json`
<save_dir>/.tmp-global_step100/...      being written, or left by a crash
<save_dir>/.old-global_step100/...      the previous checkpoint of a step that is being replaced
<save_dir>/.trash-global_step50/...     being deleted
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron.files import read_bytes

LATEST = "latest"
MANIFEST = "manifest.json"
CONFIGS = "configs"
TEMPORARY_PREFIX, OLD_PREFIX, TRASH_PREFIX = ".tmp-", ".old-", ".trash-"
WITHOUT_OPTIMIZER = "without_optimizer"  # in the model states: whether the optimizer state was left out

_STEP = re.compile(rf"(?:{re.escape(OLD_PREFIX)})?global_step([0-9]+)")


def step_name(iteration: int) -> str:
    """Directory name (and DeepSpeed tag) of the checkpoint taken after `iteration` optimizer steps."""
    return f"global_step{iteration}"


def step_of(directory: Path) -> int | None:
    """Step number of a checkpoint directory, or None if `directory` does not have such a name."""
    match = _STEP.fullmatch(directory.name)
    return int(match[1]) if match else None


def step_directories(save_dir: Path) -> dict[int, Path]:
    """Every checkpoint in `save_dir` by step, oldest first, complete or damaged.

    A crash while a step is being replaced leaves the previous checkpoint as `.old-global_step{N}`. It counts as
    step N as long as `global_step{N}` does not exist.
    """
    if not save_dir.is_dir():
        return {}
    found = {}
    for path in sorted(save_dir.iterdir()):  # ".old-..." sorts before "global_...", which then replaces it
        step = step_of(path)
        if step is not None and path.is_dir():
            found[step] = path
    return dict(sorted(found.items()))


def read_latest(save_dir: Path) -> int | None:
    """Step named by `latest`, or None if the file is missing or names no step."""
    try:
        text = read_bytes(save_dir / LATEST, 1000).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    match = re.fullmatch(r"global_step([0-9]+)", text)
    return int(match[1]) if match else None


def locate(directory: Path, iteration: int | None = None) -> tuple[Path, int | None]:
    """Split a path into save directory and step: `save/global_step100` is step 100 of `save`."""
    directory = Path(directory).absolute()
    step = step_of(directory)
    if iteration is None and step is not None and directory.is_dir():
        return directory.parent, step
    return directory, iteration
