"""The tiny model's recipe with a cache of its own, and processes that are forked from one that has imported torch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.forks import Forks
from tests.system.tiny import Tiny, write_corpus


@pytest.fixture(autouse=True, scope="package")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERJOULE_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> Tiny:
    return Tiny(corpus, tmp_path / "runs")


@pytest.fixture(scope="package")
def forks(own_cache: Path) -> Iterator[Forks]:
    with Forks() as server:
        yield server
