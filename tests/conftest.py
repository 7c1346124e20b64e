"""No test sees the user's cache; the tiny model's recipe for those that train."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.tiny import Tiny, write_corpus


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERJOULE_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> Tiny:
    return Tiny(corpus, tmp_path / "runs")
