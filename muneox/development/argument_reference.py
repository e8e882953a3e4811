"""Write the reference of all configuration keys from their declarations.

python tools/argument_reference.py            # writes configs/neox_arguments.md
python tools/argument_reference.py --check    # exit code 1 if that file is out of date
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

from megatron.neox_arguments.fields import GROUPS
from megatron.neox_arguments.keys import REFUSED, SATISFIED

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "configs" / "neox_arguments.md"
HEADER = """\
# Configuration keys

Made by `python tools/argument_reference.py` from the declarations in `megatron/neox_arguments/fields`.

Keys stand in YAML or JSON files; `-` and `_` are alike. Several files are merged; no key may stand in two.
A key that is null has its default. `gas` and `save-interval`, former names, still mean
gradient-accumulation-steps and checkpoint-factor. Numbers such as 1e-5 need no decimal point.
On the command line `--key value` overrides any of them, inside sections too: `--optimizer.params.eps 1e-9`.

- **supported** keys are read by the code.
- **satisfied** keys ask for an optimisation whose result is given anyway.
- **refused** keys accept only the value shown; anything else is an error that says what to use.
"""


def type_name(annotation: Any) -> str:
    """A type as a user would write it: int, list of int, one of a set of words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(type_name(part) for part in parts if part is not types.NoneType)
    if origin is list:
        return f"list of {type_name(parts[0])}"
    return getattr(annotation, "__name__", str(annotation).removeprefix("typing.")).lower()


def entry(field: dataclasses.Field) -> str:
    """Table row of one key: name, type, default, description with its status."""
    meta = field.metadata
    notes = [meta["doc"]]
    if meta["status"] == SATISFIED:
        notes.append(f"*Satisfied*: {meta['notice']}.")
    if meta["status"] == REFUSED:
        notes.append(f"*Refused*: {meta['reason']}.")
    for value, reason in meta.get("refuse", {}).items():
        notes.append(f"`{value}` is refused: {reason}.")
    default = "" if field.default is None else f"`{field.default!r}`".replace("|", "\\|")
    text = " ".join(notes).replace(" | ", " \\| ")
    return f"| `{field.name.replace('_', '-')}` | {type_name(field.type)} | {default} | {text} |"


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [HEADER]
    for group in GROUPS:
        title = group.__name__.removeprefix("NeoXArgs")
        parts.append(f"\n## {title}\n\n{group.__doc__}\n\n| key | type | default | |\n|---|---|---|---|\n")
        parts.extend(entry(field) + "\n" for field in dataclasses.fields(group))
    return "".join(parts)


def main(input_args: list[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args(input_args).check
    if not check:
        TARGET.write_text(reference(), encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != reference():
        print(
            f"{TARGET.relative_to(ROOT)} is out of date: run python tools/argument_reference.py",
            file=sys.stderr,
        )
        return 1
    return 0
