"""What every entry script does around its work: run it, tell a user's mistake without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from megatron.errors import UserError


def run_script(main: Callable[[], object]) -> int:
    """The exit code: what main returns if it is a number, else 0; a UserError's own after one line on stderr.

    MUNEOX_TRACEBACK=1 in the environment shows the error's traceback too.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        result = main()
        code = result if isinstance(result, int) else 0
    except UserError as error:
        if os.environ.get("MUNEOX_TRACEBACK") == "1":
            raise
        if error.exit_code:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            print(error)
        code = error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    return code
