"""Files that open at their first use. A limited number stays open: those that were used last."""

from __future__ import annotations

import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_DESCRIPTORS = 8  # of the limit, one of this many file descriptors is for one `Lazy`, which opens up to three files
_opened: OrderedDict[int, weakref.ref[Lazy[Any]]] = OrderedDict()


def most_open() -> int:
    """How many `Lazy` values stay open, from this process's limit of file descriptors (`ulimit -n`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if limit == resource.RLIM_INFINITY else max(limit // _DESCRIPTORS, 4)


class Lazy(Generic[T]):
    """Calls `open_value` when the value is needed, and again after others have taken its place.

    A value must close its files when it is no longer referenced, as mapped arrays do.
    """

    def __init__(self, open_value: Callable[[], T]) -> None:
        self._open_value = open_value
        self._value: T | None = None

    def __call__(self) -> T:
        number = id(self)
        if self._value is None:
            self._value = self._open_value()
            _opened[number] = weakref.ref(self, lambda _: _opened.pop(number, None))
            while len(_opened) > most_open():
                _, oldest = _opened.popitem(last=False)
                if (lazy := oldest()) is not None:
                    lazy._value = None
        else:
            _opened.move_to_end(number)
        return self._value
