"""Objects that one process builds and the others open."""

from __future__ import annotations

import itertools
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron.errors import DataError, UserError
from megatron.initialize import Runtime

T = TypeVar("T")

_LARGEST = 32 << 20  # bytes of a pickled object that is sent to the other processes
_calls = itertools.count()


def built_once(runtime: Runtime, build: Callable[[], T], usable: Callable[[T], bool] = lambda value: True) -> T:
    """Call `build` in the first process, and return its result, pickled and unpickled, in the others.

    All processes must call it. They wait without a collective, and so without its timeout. An object pickled as paths
    opens its files here. Where it is not `usable`, as on a host with its own disk, one process of the host builds it
    again. So does every process if the object is too large to be sent. Raises what `build` raises.
    """
    key = f"muneox/built/{next(_calls)}"
    if runtime.world_size == 1:
        return build()
    if runtime.is_first:
        return _publish(key, build)
    found, value = _receive(key, usable)
    if found:
        return value  # type: ignore[no-any-return]
    key = f"{key}/{socket.gethostname()}"
    if _store().add(f"{key}/builders", 1) == 1:
        return _publish(key, build)
    found, value = _receive(key, usable)
    return value if found else build()


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _publish(key: str, build: Callable[[], T]) -> T:
    try:
        value = build()
    except Exception as error:
        failed = type(error) if isinstance(error, UserError) else DataError
        _store().set(key, pickle.dumps((failed, str(error))))
        raise
    content = pickle.dumps((None, value))
    _store().set(key, content if len(content) <= _LARGEST else pickle.dumps((None, None)))
    return value


def _receive(key: str, usable: Callable[[Any], bool]) -> tuple[bool, Any]:
    """Wait for an object. Returns whether it can be used here, and the object."""
    while not _store().check([key]):  # a wait in the store would hold up the watchdog, which uses it too
        time.sleep(0.1)
    failed, value = pickle.loads(_store().get(key))
    if failed is not None:
        raise failed(value)
    return value is not None and usable(value), value
