"""An accepted key that nothing reads is a defect."""

import ast
from pathlib import Path

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.keys import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
# In the configuration package these hand a key's value on; the rest only declares, resolves or checks it.
READERS = {"arguments.py", "deepspeed_json.py", "launcher.py", "sections.py"}
# Keys that are resolved into another one, which must be read in their place.
FOLDED = {
    "batch_size": "train_micro_batch_size_per_gpu",
    "clip_grad": "gradient_clipping",
    "dynamic_loss_scale": "loss_scale",
    "fp32_allreduce": "communication_data_type",
    "global_num_gpus": "train_batch_size",
    "world_size": "train_batch_size",
    "is_pipe_parallel": "pipe_parallel_size",
}


def source_files():
    package = ROOT / "megatron" / "neox_arguments"
    for folder in ("megatron", "mup", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(package) or path.name in READERS:
                yield path
    yield from sorted(ROOT.glob("*.py"))


def names_read(path: Path) -> set[str]:
    """Attributes that the file loads, and strings that are a key's name (for getattr and tables)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_every_supported_key_is_read():
    read = set().union(*map(names_read, source_files()))
    supported = [n for n, f in NeoXArgs.__dataclass_fields__.items() if f.metadata["status"] == SUPPORTED]
    assert [name for name in supported if FOLDED.get(name, name) not in read] == []
