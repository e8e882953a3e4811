"""`--help` of every command: what it is for, examples, options with their defaults, and the command that comes next."""

from __future__ import annotations

import argparse
from typing import Any


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds the default of an option whose help does not state it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        help, default = action.help, action.default
        none = default in (None, False, True, argparse.SUPPRESS, "") or default == []
        if help is None or "default" in help or none or not action.option_strings:
            return help
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{help} (default: {str(shown).replace('%', '%%')})"


def command_parser(description: str | None, following: str, **settings: Any) -> argparse.ArgumentParser:
    """A parser for a command.

    description: one line about what the command is for, then indented examples, then the rest. following: the sentence
    at the end, which names the next command. settings: arguments of ArgumentParser; `epilog` comes before `following`.
    """
    epilog = "\n".join(filter(None, [settings.pop("epilog", ""), f"Next: {following}"]))
    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=CommandHelp, **settings)
