"""For all tests: one thread a process, and no deadlines, since a busy machine is no defect."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
