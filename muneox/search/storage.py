"""Storage of a study, and the lock under which its trials are claimed.

The storage is SQLite (one host), Optuna's journal file (hosts that share a file system with working locks) or
PostgreSQL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from megatron.errors import ConfigError, UserError, first_line
from megatron.mappings import differences

JOURNAL_SUFFIXES = (".journal", ".log", ".jsonl")
Lock = Callable[[], contextlib.AbstractContextManager[None]]


class StudyError(UserError):
    """The study's file or server cannot be used, or belongs to another search."""


class FileLock:
    """flock on a separate file. The kernel releases it when the process dies, whatever the cause.

    Optuna's journal calls `acquire` and `release`. Threads can share one object.
    """

    def __init__(self, path: Path, journal: Path | None = None) -> None:
        self._path, self._journal = path, journal
        self._held = threading.local()

    def acquire(self) -> bool:
        self._held.file = self._path.open("ab")
        fcntl.flock(self._held.file, fcntl.LOCK_EX)
        if self._journal is not None:
            _drop_torn_line(self._journal)
        return True

    def release(self) -> None:
        self._held.file.close()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _drop_torn_line(journal: Path) -> None:
    """Remove an incomplete last line, which a process killed during a write leaves behind."""
    if not journal.is_file() or journal.stat().st_size == 0:
        return
    with journal.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(where: str) -> tuple[BaseStorage, Lock]:
    """Open Optuna's storage at a path or URL, with a lock that one process at a time can hold, across hosts.

    `NAME.journal` (.log, .jsonl) is a journal file, any other path an SQLite file, postgresql://... a server.
    Raises StudyError or ConfigError, naming `where`.
    """
    if where.startswith("sqlite:///"):
        where = where.removeprefix("sqlite:///")
    if "://" in where:
        return _open_server(where)
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".claims"))
    try:
        with lock():  # two processes that start at once would both create the tables
            if path.suffix in JOURNAL_SUFFIXES:
                write_lock = FileLock(path.with_name(path.name + ".writes"), path)
                backend = JournalFileBackend(str(path), lock_obj=write_lock)  # type: ignore[arg-type]
                return JournalStorage(backend), lock
            return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 120}}), lock
    except Exception as error:  # Optuna, SQLAlchemy and JSON each raise their own errors
        raise StudyError(f"{path}: cannot be used as a study: {first_line(error)}") from error


def _open_server(url: str) -> tuple[BaseStorage, Lock]:
    if not url.startswith(("postgresql://", "postgresql+")):
        raise ConfigError(f"--study {url}: expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    import sqlalchemy

    try:
        # AUTOCOMMIT: the lock belongs to the connection, and an open transaction would delay vacuuming.
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
        lock = _advisory_lock(engine)
        with lock():
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True}), lock
    except ImportError as error:
        raise StudyError(f"--study: PostgreSQL needs a driver: pip install 'psycopg[binary]' ({error})") from error
    except Exception as error:
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True)
        raise StudyError(f"{shown}: cannot be used as a study: {first_line(error)}") from error


def _advisory_lock(engine: Any) -> Lock:
    """PostgreSQL's advisory lock. The server releases it when the connection ends."""
    import sqlalchemy

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('muneox search'))"))
            yield

    return lock


def open_study(storage: BaseStorage, lock: Lock, name: str, description: dict[str, Any], where: str) -> optuna.Study:
    """Join or create the study `name`. Raises StudyError if it belongs to another space or configuration."""
    try:
        with lock():
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="minimize",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),  # unused: see samplers.py
            )
            stored = study.user_attrs.get("description")
            if stored is None and not study.get_trials(deepcopy=False):
                study.set_user_attr("description", description)
                return study
    except Exception as error:  # a damaged file; Optuna, SQLAlchemy and JSON each raise their own errors
        raise StudyError(f"{where}: cannot be used as a study: {first_line(error)}") from error
    if not isinstance(stored, Mapping | None):
        raise StudyError(f"{where}: the study {name!r} in it is damaged: its description is {stored!r}")
    if stored is None:
        raise StudyError(f"{where}: the study {name!r} in it was not created by this search; name another --study")
    found = differing(stored, description)
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise StudyError(f"{where} holds another search: {shown}. Name another --study")
    return study


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describe each difference between two nested mappings in one phrase."""
    return [f"{name} is {first!r} there and {second!r} here" for name, first, second in differences(stored, wanted)]
