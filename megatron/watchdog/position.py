"""Where the threads of this process are: the collective that they wait in, and their stacks."""

from __future__ import annotations

import pickle
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_HERE = str(Path(__file__).resolve().parents[2])
_OWN = (f"{_HERE}/megatron/", f"{_HERE}/muneox/")
_COLLECTIVES = str(Path(dist.distributed_c10d.__file__))
_PACKAGES = sysconfig.get_path("purelib")
_STANDARD = sysconfig.get_path("stdlib")
_WRAPPERS = (  # around collectives: their caller is the place of interest
    str(Path(torch.__file__).parent),
    f"{_PACKAGES}/deepspeed/comm/",
    f"{_PACKAGES}/deepspeed/utils/",
    *(f"{_HERE}/megatron/{file}.py" for file in ("initialize", "mpu/communicator", "mpu/collectives")),
    f"{_HERE}/megatron/checkpointing/collective.py",
    "<",
)


@dataclass(frozen=True)
class Position:
    """operation: the function of torch.distributed that a thread is in, such as all_reduce; None outside of one.

    place: file, line and function that called it, or where the main thread is.
    """

    operation: str | None
    place: str


def position(ignored: Collection[int] = ()) -> Position:
    """Position of this process. ignored: identifiers of threads that do not count.

    The backward pass on a device runs in threads of autograd, so every thread counts. Where none is inside a
    function of torch.distributed, a device may still work on a collective (see `unfinished_on_device`).
    """
    main = threading.main_thread().ident or 0
    frames = {thread: frame for thread, frame in sys._current_frames().items() if thread not in ignored}
    for thread in sorted(frames, key=lambda thread: thread != main):
        calls = _outwards(frames[thread])
        inside = [i for i, call in enumerate(calls) if call.f_code.co_filename == _COLLECTIVES]
        if inside:
            return Position(calls[inside[-1]].f_code.co_name, _place(map(_Call.of, calls[inside[-1] :])))
    return Position(None, _place(map(_Call.of, _outwards(frames[main] if main in frames else None))))


def unfinished_on_device() -> Position | None:
    """The oldest collective that a device has not finished, by torch's flight recorder; None without a record."""
    dump: Callable[..., bytes] | None = getattr(torch._C._distributed_c10d, "_dump_fr_trace", None)
    record = {} if dump is None else pickle.loads(dump(True, True, True))
    entries = [entry for entry in record.get("entries", ()) if entry["state"] != "completed"]
    if not entries:
        return None
    first = min(entries, key=lambda entry: entry["record_id"])
    calls = [_Call(frame["filename"], frame["line"], frame["name"]) for frame in first["frames"]]
    return Position(first["profiling_name"].partition(":")[2] or first["profiling_name"], _place(calls))


def stacks(ignored: Collection[int] = ()) -> str:
    """The Python stack of every thread, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    text = ""
    for thread, frame in sys._current_frames().items():
        if thread not in ignored:
            text += f"thread {names.get(thread, thread)}:\n" + "".join(traceback.format_stack(frame))
    return text


def collective_count() -> int:
    """Number of collectives that this process has started so far, in all groups."""
    if not dist.is_initialized():
        return 0
    groups: Any = list(dist.distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


@dataclass(frozen=True)
class _Call:
    file: str
    line: int
    function: str

    @classmethod
    def of(cls, frame: FrameType) -> _Call:
        return cls(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    def __str__(self) -> str:
        shown = self.file.removeprefix(f"{_PACKAGES}/").removeprefix(f"{_HERE}/")
        return f"{shown}:{self.line} in {self.function}"


def _outwards(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _place(calls: Iterable[_Call]) -> str:
    """The innermost call outside torch and its wrappers, and the one of this project that led to it."""
    calls = list(calls)
    outside = [call for call in calls if not call.file.startswith(_WRAPPERS) and not _is_standard(call)]
    if not outside:
        return str(calls[0]) if calls else "an unknown place"
    first, own = outside[0], next((call for call in outside if call.file.startswith(_OWN)), None)
    return str(first) if own is None or own is first else f"{first}, from {own}"


def _is_standard(call: _Call) -> bool:
    return call.file.startswith(_STANDARD) and not call.file.startswith(_PACKAGES)
