from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.tiny import make_corpus, write_proxy


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration file of a tiny proxy, in the folder of its corpus."""
    folder = tmp_path_factory.mktemp("search")
    make_corpus(folder)
    return write_proxy(folder)
