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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from megatron.neox_arguments.fields import ALIASES, GROUPS, KEYS, section_fields
from megatron.neox_arguments.keys import REFUSED, SATISFIED, key_of
from megatron.neox_arguments.transfer import FREE

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "configs" / "neox_arguments.md"
HEADER = """\
# Configuration keys

Made by `python tools/argument_reference.py` from the declarations in `megatron/neox_arguments/fields`.

Keys stand in YAML or JSON files; `-` and `_` are alike. Several files are merged; no key may stand in two.
A key that is null has its default. Numbers such as 1e-5 need no decimal point. Former names that still work:
{aliases}.
On the command line `--key value` overrides any of them, inside sections too: `--optimizer.params.eps 1e-9`.

- **supported** keys are read by the code.
- **satisfied** keys ask for an optimisation whose result is given anyway.
- **refused** keys accept only the value shown; anything else is an error that says what to use.

Column *transfer*: what follows if a proxy and its target differ in the key. An empty cell means that the key changes
nothing that is trained.
"""
TABLE = "| key | type | default | accepted | transfer | |\n|---|---|---|---|---|---|\n"
SECTION_TABLE = "| key | type | default | accepted | |\n|---|---|---|---|---|\n"


def type_name(annotation: Any) -> str:
    """A type as a user would write it: int, list of int, one of a set of words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(type_name(part) for part in parts if part is not types.NoneType)
    if origin is list:
        return "list" if parts[0] is Any else f"list of {type_name(parts[0])}"
    annotation = origin or annotation
    return getattr(annotation, "__name__", str(annotation).removeprefix("typing.")).lower()


def cells(field: dataclasses.Field[Any]) -> tuple[str, str, str, str]:
    """Type, default, accepted values, and the description with the key's status."""
    key = key_of(field)
    notes = [key.doc]
    if key.section:
        notes.append(f"See {key.section.__name__.removesuffix('Section')} below.")
    if key.same_as and key.same_as not in key.doc:
        notes.append(f"Gives the same value as `{_spelt(key.same_as)}`.")
    if key.mup_only:
        notes.append("Needs `use-mup`.")
    if key.status == SATISFIED:
        notes.append(f"*Satisfied*: {key.notice}.")
    if key.status == REFUSED:
        notes.append(f"*Refused*: {key.reason}.")
    notes += [f"`{value}` is refused: {reason}." for value, reason in key.refuse.items()]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = "" if default is None else f"`{default!r}`"
    accepted = key.limit.expected if key.limit else ""
    shown, accepted, doc = (text.replace("|", "\\|") for text in (shown, accepted, " ".join(notes)))
    return type_name(field.type), shown, accepted, doc


def entry(field: dataclasses.Field[Any]) -> str:
    """Table row of one top-level key."""
    kind, default, accepted, notes = cells(field)
    transfer = key_of(field).transfer
    effect = "" if transfer is FREE else transfer.kind.value
    return f"| `{_spelt(field.name)}` | {kind} | {default} | {accepted} | {effect} | {notes} |\n"


def sections(path: str, section: type) -> Iterator[str]:
    """The tables of the section at `path` and of the sections in it."""
    yield f"\n### {section.__name__.removesuffix('Section')}: `{path}`\n\n{SECTION_TABLE}"
    fields = section_fields(path, section)
    for name, field in fields.items():
        if field.name in KEYS and key_of(field).same_as == f"{path}.{name}":
            yield f"| `{name}` | {type_name(field.type)} | | | Declared above as `{_spelt(field.name)}`. |\n"
        else:
            yield "| `" + name + "` | " + " | ".join(cells(field)) + " |\n"
    for name, field in fields.items():
        inner = key_of(field).section
        if inner:
            yield from sections(f"{path}.{name}", inner)


def reference() -> str:
    """The whole page, as Markdown."""
    aliases = ", ".join(f"`{_spelt(alias)}` for `{_spelt(name)}`" for alias, name in sorted(ALIASES.items()))
    parts = [HEADER.format(aliases=aliases)]
    for group in GROUPS:
        title = group.__name__.removeprefix("NeoXArgs")
        parts.append(f"\n## {title}\n\n{group.__doc__}\n\n{TABLE}")
        parts.extend(entry(field) for field in dataclasses.fields(group))
    parts.append("\n## Sections\n\nThe keys inside sections. A key that is not listed is an error.\n")
    for name, key in KEYS.items():
        if key.section:
            parts.extend(sections(name, key.section))
    return "".join(parts)


def _spelt(name: str) -> str:
    return name if "." in name else name.replace("_", "-")


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
