"""Feed one parser with mutated input until the time is over: `python -m tests.fuzz.worker PARSER SECONDS SEED FOLDER`.

The process limits itself: 1 GiB of memory beyond what it has after its imports and first input, and 10 seconds an
input. The input is written to FOLDER before it is parsed. Prints a JSON object: the number of inputs, how many were
accepted, and the failures, at most one for each place in the code.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from megatron.errors import UserError
from tests.fuzz.parsers import PARSERS, Parser

SECONDS_PER_INPUT = 10
MEMORY = 1 << 30


class Hang(BaseException):
    """An input took longer than its time."""


def _ring(*_: Any) -> None:
    raise Hang


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def attempt(parser: Parser, content: Any, folder: Path) -> tuple[str, str] | None:
    """Parse one input. Returns None where it is accepted or refused with a UserError, else place and traceback."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)
    try:
        parser.parse(content, folder)
    except UserError as error:
        if not str(error).strip() or len(str(error)) > 20_000:
            return "message", f"the message has {len(str(error))} characters"
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/tests/" not in frame.filename and "/lib/" not in frame.filename]
        frame = (own or frames)[-1]
        return f"{type(error).__name__} {frame.filename}:{frame.lineno}", traceback.format_exc()[-6000:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def main(name: str, seconds: float, seed: int, folder: Path) -> None:
    parser, rng = PARSERS[name], random.Random(seed)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _ring)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = parser.seeds()
    scratch = Path(tempfile.mkdtemp())
    for content in seeds:  # also imports everything before the limit on memory
        if (failure := attempt(parser, content, scratch)) is not None:
            raise SystemExit(f"{name}: a seed fails: {failure[1]}")
    _limit_memory()
    failures: dict[str, dict[str, str]] = {}
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        content = parser.mutate(rng.choice(seeds), rng, seeds)
        (folder / "input").write_bytes(
            content if isinstance(content, bytes) else repr(content).encode("utf-8", "replace")
        )
        faulthandler.dump_traceback_later(2 * SECONDS_PER_INPUT, exit=True)  # for a hang in compiled code
        failure = attempt(parser, content, scratch)
        faulthandler.cancel_dump_traceback_later()
        count += 1
        if failure is not None and failure[0] not in failures:
            kept = folder / f"failure-{len(failures)}"
            shutil.copyfile(folder / "input", kept)
            failures[failure[0]] = {"input": str(kept), "traceback": failure[1]}
            del failure
            gc.collect()
    shutil.rmtree(scratch, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"inputs": count, "peak_mib": round(peak), "failures": failures}))
    sys.stdout.flush()
    os._exit(0)  # libraries that ran out of memory can fail at exit


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
