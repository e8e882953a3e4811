"""Read a YAML or JSON configuration file, keep line numbers and reject duplicate keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron.errors import ConfigError

CONFIG_SUFFIXES = (".yml", ".yaml", ".json")


class _Loader(yaml.SafeLoader):
    """Safe YAML loader in which 1e-5 is a float, and which has no dates, base-60 or octal numbers."""


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
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value).replace("_", "")))

SHIPPED_CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # a symbolic link in a checkout, a folder in a wheel


@dataclass(frozen=True)
class ConfigFile:
    """A parsed file: path, text, top-level values and the line number (from 1) of each top-level key."""

    path: str
    text: str
    values: dict[str, Any]
    lines: dict[str, int]


def find_config(name: str, folder: str | None = None) -> Path:
    """Find a configuration file. The suffix .yml is optional, as in GPT-NeoX.

    If `configs/...` does not exist in the current folder, the file of that name in this project is used.
    """
    path = Path(folder, name) if folder else Path(name)
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
    """Parse a value from the command line as in a configuration file."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def load_config(path: str | Path) -> ConfigFile:
    """Read one configuration file.

    Raises ConfigError if the file is missing or unreadable, has bad syntax or duplicate keys, or has no mapping at the
    top level.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
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
        problems = _comma_problems(root, name) or _key_problems(root, name)
        if problems:
            raise ConfigError("\n".join(problems))
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
        raise ConfigError(f"{name}: cannot be parsed: {error}") from None
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
