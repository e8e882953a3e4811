"""Every accepted key is used: each is followed through copies to a use.

A key is read as an attribute (`args.mup_attn_temp`). A read that only copies it into a field of a dataclass, an
attribute of an object or a variable does not count as a use. The copy is followed in the same way until other code
reads it. Fields are identified only by name, so the test can find a use that does not exist but never misses one.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import FIELDS, KEYS, repeated_in
from megatron.neox_arguments.keys import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
# Modules of the configuration package that declare, complete or validate values. Reads in them are not uses.
NO_USERS = {
    *("keys.py", "limits.py", "transfer.py", "complete.py", "messages.py", "merging.py", "sizes.py", "spelling.py"),
    *("features.py", "former.py", "interface.py"),
    *(
        "yaml_loader.py",
        "validate.py",
        "validate_key.py",
        "validate_layout.py",
        "validate_run.py",
        "validate_sections.py",
    ),
}
# Keys that are completed into another key, which must be used instead.
FOLDED = {
    "batch_size": "train_micro_batch_size_per_gpu",
    "clip_grad": "gradient_clipping",
    "dynamic_loss_scale": "loss_scale",
    "fp32_allreduce": "communication_data_type",
    "global_num_gpus": "world_size",
    "is_pipe_parallel": "pipe_parallel_size",
}
# Calls that pass a value on unchanged.
CONVERSIONS = {"bool", "deepcopy", "dict", "float", "int", "known", "list", "Path", "str", "tuple"}


def source_files() -> Iterator[Path]:
    package = ROOT / "megatron" / "neox_arguments"
    for folder in ("megatron", "mup"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            declares = path.parent == package / "fields" or (path.parent == package and path.name in NO_USERS)
            if not declares:
                yield path
    for name in ("train", "generate", "eval", "prepare_data"):
        yield ROOT / "muneox" / "commands" / f"{name}.py"
    yield from sorted(ROOT.glob("*.py"))


class Reads(ast.NodeVisitor):
    """Collect which attributes are used in the visited files, and which are copied into which others."""

    def __init__(self, fields: dict[str, list[str]]):
        self.fields = fields  # dataclass: its fields in order
        self.used: set[str] = set()
        self.copied: dict[str, set[str]] = defaultdict(set)
        self.variables: list[dict[str, str]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.variables.append({})
        self.generic_visit(node)
        self.variables.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for one, value in pairs:
                self._assign(one, value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
            self.variables[-1][target.id] = value.attr
            self.visit(value.value)
        elif isinstance(target, ast.Attribute):
            self._copy(value, target.attr)
        else:
            self.visit(value)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            self.used.add(str(node.args[1].value))
        names = self.fields.get(name)
        if names is None:
            self.generic_visit(node)
            return
        self.visit(node.func)
        keywords = [(word.arg, word.value) for word in node.keywords]
        for field, value in [*zip_longest(names[: len(node.args)], node.args), *keywords]:
            if field is None:
                self.visit(value)
            else:
                self._copy(value, field)

    def _copy(self, value: ast.expr, target: str) -> None:
        """Record that `value` is copied to the field or attribute `target`."""
        if isinstance(value, ast.IfExp):
            self.visit(value.test)
            self._copy(value.body, target)
            self._copy(value.orelse, target)
        elif isinstance(value, ast.BoolOp):
            for part in value.values:
                self._copy(part, target)
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in CONVERSIONS:
            for part in value.args:
                self._copy(part, target)
        elif isinstance(value, ast.Attribute):
            self.copied[value.attr].add(target)
            self.visit(value.value)
        elif isinstance(value, ast.Name) and value.id in self.variables[-1]:
            self.copied[self.variables[-1][value.id]].add(target)
        else:
            self.visit(value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.used.add(node.attr)
        self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in self.variables[-1]:
            self.used.add(self.variables[-1][node.id])

    def reaches_a_use(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether `name` or any of its copies is used."""
        if name in self.used:
            return True
        return any(self.reaches_a_use(copy, seen | {name}) for copy in self.copied[name] - seen - {name})


def dataclass_fields(trees: list[ast.Module]) -> dict[str, list[str]]:
    """Return the fields of every dataclass in order, those of its bases first."""
    nodes = {
        node.name: node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    }

    def fields(node: ast.ClassDef) -> list[str]:
        bases = [nodes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in nodes]
        own = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        inherited = [name for base in bases for name in fields(base)]
        return list(dict.fromkeys(inherited + [target.id for target in own if isinstance(target, ast.Name)]))

    return {name: fields(node) for name, node in nodes.items()}


def reads_of(sources: list[str]) -> Reads:
    trees = [ast.parse(source) for source in sources]
    reads = Reads(dataclass_fields(trees))
    for tree in trees:
        reads.visit(tree)
    return reads


def to_deepspeed() -> set[str]:
    repeated = {name for section in ("fp16", "zero_optimization") for name in repeated_in(section).values()}
    return repeated | {name for name, key in KEYS.items() if key.to_deepspeed}


def test_every_supported_key_reaches_a_use():
    reads = reads_of([path.read_text(encoding="utf-8") for path in source_files()])
    supported = [FOLDED.get(name, name) for name, key in KEYS.items() if key.status == SUPPORTED]
    assert sorted({name for name in supported if not reads.reaches_a_use(name)} - to_deepspeed()) == []


CHAIN = """
@dataclass
class Multipliers:
    embedding: float
    bias: float

@dataclass
class Wide(Multipliers):
    scale: float

class Model:
    def __init__(self, multipliers, temperature):
        self.bias = multipliers.bias or 1.0
        self.temperature = temperature

def build(args):
    bias = args.mup_bias if args.positions else None
    width = args.width
    wide = Wide(1.0, 1.0, args.mup_scale)
    return Multipliers(args.mup_embedding, bias=float(bias)), width, Multipliers(1.0, args.mup_direct)

def forward(model, x):
    return x * model.multipliers.embedding
"""


def test_a_copy_is_not_a_use():
    reads = reads_of([CHAIN.replace("bias = args.mup_bias if args.positions else None", "bias = args.mup_bias")])
    assert not reads.reaches_a_use("mup_bias") and not reads.reaches_a_use("mup_direct")
    assert not reads.reaches_a_use("mup_scale") and reads.copied["mup_scale"] == {"scale"}
    assert reads.reaches_a_use("mup_embedding") and reads.reaches_a_use("width")
    assert reads_of([CHAIN]).reaches_a_use("positions")
    used = reads_of([CHAIN, "def forward(self, x):\n    return x + self.bias\n"])
    assert used.reaches_a_use("mup_direct") and not used.reaches_a_use("temperature")


@pytest.mark.parametrize("name", sorted(to_deepspeed()))
def test_keys_of_deepspeed_reach_its_configuration(small, name):
    """Changing the key changes DeepSpeed's configuration."""
    base = {key: value for key, value in small.items() if key != "train_micro_batch_size_per_gpu"}
    base |= {"fp16": {"enabled": True}, "zero_optimization": {"overlap_comm": True}, "train_batch_size": 8}
    changed = {
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "checkpoint": {"tag_validation": "Fail"},
        "gradient_clipping": 0.5,
        "gradient_accumulation_steps": 4,
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "loss_scale": 128.0,
    }
    default = NeoXArgs.from_dict(base)
    value = changed.get(name)
    if value is None and KEYS[name].section:
        value = {"enabled": True}
    elif value is None:
        now = getattr(default, name)
        value = not now if isinstance(now, bool) else now + 1
    other = NeoXArgs.from_dict({**base, name: value})
    assert FIELDS[name].default != value
    assert other.deepspeed_config != default.deepspeed_config
