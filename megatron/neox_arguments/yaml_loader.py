"""Read a YAML or JSON configuration file, keep line numbers and reject duplicate keys."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron.errors import ConfigError, one_per_line
from megatron.files import read_bytes
from megatron.neox_arguments.limits import fits_in_64_bits

CONFIG_SUFFIXES = (".yml", ".yaml", ".json")
_MAX_BYTES = 1 << 18  # PyYAML reads about 100 kB per second
MAX_DEPTH = 32
_MAX_NODES = 50_000  # aliases count as often as they are used
_TOO_DEEP = f"values are nested deeper than {MAX_DEPTH} levels"
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """Safe YAML loader in which 1e-5 is a float, and which has only JSON's types: no dates, sets or binary data."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Like the base class, but a value that is nested too deeply is an error before the rest of it is read."""
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Like the base class, but every failure is a ConstructorError with its place."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in (*_TYPES, "merge", "value"):
            shown = kind if "://" in kind or kind.startswith(("tag:", "!")) else f"!!{kind}"
            raise yaml.constructor.ConstructorError(
                None, None, f"values of the type {shown} are not supported", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            value = str(node.value)
            shown = value if len(value) <= 40 else f"{value[:40]}... ({len(value)} characters)"
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown!r} is not a value of the type !!{kind}", node.start_mark
            ) from None


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    value = int(str(node.value).replace("_", ""))
    if not fits_in_64_bits(value):
        raise yaml.constructor.ConstructorError(
            None, None, f"an integer of {len(node.value)} digits does not fit in 64 bits", node.start_mark
        )
    return value


_DROPPED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _DROPPED_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)

SHIPPED_CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # a symbolic link in a checkout, a folder in a wheel


@dataclass(frozen=True)
class ConfigFile:
    """A parsed file: path, text, top-level values and the line number (from 1) of each top-level key."""

    path: str
    text: str
    values: dict[str, Any]
    lines: dict[str, int]


def recorded_config(folder: str, iteration: object = None) -> str:
    """The configuration that a checkpoint of this trainer holds: `<folder>/global_step{N}/configs/resolved.json`.

    iteration: N; None for the step in `latest`. Raises ConfigError if there is none.
    """
    try:
        step = f"global_step{iteration}" if iteration is not None else Path(folder, "latest").read_text().strip()
    except (OSError, ValueError):
        step = ""
    file = Path(folder, step, "configs", "resolved.json")
    if not file.is_file():
        raise ConfigError(
            f"load: {folder} holds no checkpoint with the configuration of its run ({file} does not exist): name the "
            "folder that a run saved to, or the configuration files"
        )
    return str(file)


def find_config(name: str, folder: str | None = None) -> Path:
    """Find a configuration file. The suffix .yml is optional, as in GPT-NeoX.

    If `configs/...` does not exist in the current folder, the file of that name in this project is used.
    """
    path = Path(folder, name) if folder else Path(name)
    too_long = len(os.fspath(path)) > 4000 or any(len(os.fsencode(part)) > 250 for part in path.parts)
    if not path.name or too_long or "\0" in name:
        raise ConfigError(f"{name[:100]!r}: expected the path of a configuration file")
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in CONFIG_SUFFIXES)]
    if path.suffix in CONFIG_SUFFIXES:
        candidates = [path]
    if path.parts[:1] == ("configs",):
        candidates += [SHIPPED_CONFIGS.joinpath(*candidate.parts[1:]) for candidate in candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise ConfigError(f"{path}: expected a configuration file, got a folder")
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise ConfigError(f"{path}: configuration file not found (tried {tried})")


def parse_scalar(text: str) -> Any:
    """Parse a value from the command line as in a configuration file. Text that cannot be parsed is a string."""
    if len(text) > _MAX_BYTES:
        return text
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        return text if _size_problem(node) else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError):
        return text
    finally:
        if loader is not None:
            loader.dispose()


def load_config(path: str | Path) -> ConfigFile:
    """Read one configuration file.

    Raises ConfigError if the file is missing or unreadable, has bad syntax or duplicate keys, or has no mapping at the
    top level.
    """
    path = Path(path)
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: configuration file not found") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected a UTF-8 text file ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> ConfigFile:
    """Parse the text of a configuration file. `name` appears in messages. Raises ConfigError."""
    loader = None
    try:
        loader = _Loader(_tabs_to_spaces(text))
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{name}: the file is empty; expected keys and values")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{name}:{_line(root)}: expected keys and values (`key: value`) at the top level")
        if problem := _size_problem(root):
            raise ConfigError(f"{name}: {problem}")
        problems = _comma_problems(root, name) or _key_problems(root, name)
        if problems:
            raise ConfigError(one_per_line(problems))
        lines = {key.value: _line(key) for key, _ in root.value}
        values = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        reason = error.problem or error.context or ""
        if reason.endswith("but found ','") and not _in_braces(text):
            raise ConfigError(f"{where}: a comma follows the value; {_COMMAS}") from None
        raise ConfigError(f"{where}: cannot be parsed: {reason}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: cannot be parsed: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{name}: cannot be parsed: {_TOO_DEEP}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return ConfigFile(name, text, values, {key: lines.get(key, 0) for key in values})


_COMMAS = "entries that end with commas need braces {} around all of them; in a file without braces remove the commas"


def _comma_problems(root: yaml.MappingNode, name: str) -> list[str]:
    """Return a message if the first of the entries that end with a comma is in a file without braces.

    A block pasted from a file in braces gives such entries: YAML makes the comma a part of the value.
    """
    if root.flow_style:
        return []
    for key, value in root.value:
        plain = isinstance(value, yaml.ScalarNode) and value.style is None
        if plain and value.value.endswith(","):
            return [f"{name}:{_line(key)}: a comma follows the value of {key.value!r}; {_COMMAS}"]
    return []


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _size_problem(root: yaml.Node) -> str | None:
    """Why the values of `root` are too large to handle, or None: too deep, in a circle, or multiplied by aliases."""
    counts: dict[int, int] = {}
    open_nodes: set[int] = set()

    def count(node: yaml.Node, depth: int) -> int:
        """The nodes of the tree with each alias written out."""
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if id(node) in open_nodes:
            raise ValueError(f"line {_line(node)}: an anchor contains itself")
        if id(node) not in counts:
            open_nodes.add(id(node))
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            counts[id(node)] = 1 + sum(count(part, depth + 1) for part in parts)
            open_nodes.remove(id(node))
        return counts[id(node)]

    try:
        total = count(root, 0)
    except ValueError as error:
        return str(error)
    return None if total <= _MAX_NODES else f"more than {_MAX_NODES:,} values, counting each alias"


def _key_problems(root: yaml.Node, name: str) -> list[str]:
    """Return a message for each key that is not plain text or appears twice in one mapping, at any depth."""
    problems: list[str] = []
    seen_nodes: set[int] = set()

    def visit(node: yaml.Node, path: str) -> None:
        if id(node) in seen_nodes:  # an anchor used again
            return
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, path)
        if not isinstance(node, yaml.MappingNode):
            return
        first: dict[str, tuple[str, int]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{name}:{_line(key)}: expected a plain name as a key")
                continue
            if not key.tag.endswith((":str", ":merge")):
                if node is not root:  # those of the root are reported with the unknown keys
                    problems.append(f"{name}:{_line(key)}: expected text as a key, got {key.value}; put it in quotes")
                continue
            same = key.value.replace("-", "_") if node is root else key.value
            if same in first:
                spelt, line = first[same]
                as_spelt = "" if spelt == key.value else f" (as {spelt!r})"
                where = f"{name}:{_line(key)}"
                problems.append(f"{where}: key {path + key.value!r} is given twice, first on line {line}{as_spelt}")
            else:
                first[same] = (key.value, _line(key))
            visit(value, f"{path}{key.value}.")

    visit(root, "")
    return problems


def _tabs_to_spaces(text: str) -> str:
    """Replace tabs outside strings with spaces in a flow document: JSON allows tabs as indentation, YAML does not."""
    if "\t" not in text or not _in_braces(text):
        return text
    token = re.compile(r'"(?:\\.|[^"\\])*"|\'[^\']*\'|#[^\n]*|\t', re.DOTALL)
    return token.sub(lambda match: " " if match.group() == "\t" else match.group(), text)


def _in_braces(text: str) -> bool:
    """Whether the first thing in `text` after comments is an opening brace."""
    return re.sub(r"^(?:\s*(?:#[^\n]*)?\n|\s*---[ \t]*\n)*\s*", "", text).startswith("{")
