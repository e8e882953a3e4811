"""Run an entry script and report errors of the user without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from megatron.errors import UserError
from megatron.files import discard_output


def run_script(main: Callable[[], object]) -> int:
    """Call `main` and return the exit code: its result if that is an integer, else 0.

    A UserError is printed on stderr, and its own exit code is returned. MUNEOX_TRACEBACK=1 in the environment raises it
    instead, with its traceback.
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
    except BrokenPipeError:  # the reader, for example `head`, closed the pipe
        discard_output(sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    return code
