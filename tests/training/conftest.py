from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.harness import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a tiny corpus, a .bin and an .idx file."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "text_document")
