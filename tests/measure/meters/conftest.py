"""The fake NVIDIA library, compiled once, and the GPUs that a test sees through it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes import nvml
from tests.fakes.nvml import Edges, Gpu

from perjoule.config import Config
from perjoule.measure.contract import Meter, Site, Unavailable

Build = Callable[..., tuple[Meter | Unavailable, ...]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("the fake NVML needs gcc")
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(library: Path, tmp_path: Path) -> Iterator[Edges]:
    path = tmp_path / "edges"
    with Edges.create(path, [Gpu(), Gpu()], capacity=1000) as edges, nvml.loaded(library, path):
        yield edges


@pytest.fixture
def build() -> Iterator[Build]:
    """Build meters and close them at the end, twice, as everybody may."""
    built: list[Meter] = []

    def build_(config: Config, *pids: int, devices: tuple[str, ...] = ()) -> tuple[Meter | Unavailable, ...]:
        found: tuple[Meter | Unavailable, ...] = config.build(Site(pids, devices))  # type: ignore[attr-defined]
        assert found
        built.extend(each for each in found if isinstance(each, Meter))
        return found

    yield build_
    for meter in [*built, *built]:
        meter.close()
