"""The stream of samples is the same for any ranks, workers and micro-batches, and after resuming with others."""

import json
import sysconfig
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.stores import FRACTIONS, train_tokenizer, write_store
from tests.system.test_torchrun import train as train_on_two_ranks
from tests.system.tiny import Tiny, losses, resume

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component
from perjoule.data.contract import Batch, DataSet
from perjoule.data.prefetch import Prefetcher
from perjoule.train.config import BatchConfig, DebugConfig
from perjoule.train.distributed import Ranks
from perjoule.train.stream import Stream

SIZE = 12
Recipe = dict[str, Any]


@dataclass(frozen=True)
class Readers:
    """Who reads: ranks, each with threads, each taking its part of a step in micro-batches."""

    ranks: int
    workers: int
    accumulation: int = 1

    def read(self, build: Callable[[], DataSet], first_step: int, steps: int) -> list[Batch]:
        """Return the micro-batches of all ranks in the order of the stream; every rank prepares its own data."""
        with ExitStack() as open_streams:
            ranks = []
            for rank in range(self.ranks):
                samples = build().split("train")
                batch = BatchConfig(size=SIZE, accumulation=self.accumulation)
                place = Ranks(rank, self.ranks, rank, self.ranks)
                stream = Stream(batch, DebugConfig(), place, samples.num_samples)
                ranges = stream.ranges(first_step * SIZE)
                ranks.append(open_streams.enter_context(Prefetcher(samples, ranges, self.workers)))
            parts = [list(islice(rank, steps * self.accumulation)) for rank in ranks]
        return [part for step in zip(*parts, strict=True) for part in step]


ONE, TWO, THREE = Readers(1, 0), Readers(2, 1, accumulation=2), Readers(3, 2)


@pytest.fixture(autouse=True)
def threads_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads read these batches, which the loop would read sooner itself."""
    monkeypatch.setattr("perjoule.data.prefetch.PATIENCE_S", -1.0)


@pytest.fixture(scope="module")
def recipes(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """One recipe or more of every kind, small enough for several epochs."""
    folder = tmp_path_factory.mktemp("streams")
    tokenizer = train_tokenizer(corpus, folder / "trained")
    store = write_store(corpus, tokenizer, folder / "store")
    (folder / "library").mkdir()
    for path in corpus.iterdir():
        (folder / "library" / f"{path.stem}.py").write_bytes(path.read_bytes())
    text = {"kind": "text", "path": str(corpus), "tokenizer": {"file": str(tokenizer)}, "fractions": FRACTIONS}
    packed, kept = {**text, "seq_len": 64}, {"kind": "store", "path": str(store), "seq_len": 64}
    drawn = {"num_train": 60, "num_held_out": 10}
    return {
        "text, packed": packed,
        "text, padded": {**packed, "batching": "padded"},
        "text, truncated": {**packed, "batching": "padded", "long_documents": "truncate"},
        "text, in order": {**packed, "shuffle": False},
        "stdlib": {"kind": "stdlib", "seq_len": 64, "tokenizer": {"vocab_size": 280}, "library": folder / "library"},
        "store, packed": kept,
        "store, masked": {**kept, "mask_documents": True},
        "store, padded": {**kept, "batching": "padded"},
        "mixture": {"kind": "mixture", "components": [{"data": packed, "weight": 1}, {"data": kept, "weight": 2}]},
        "dyck": {"kind": "dyck", "depth": 3, **drawn},
        "recall": {"kind": "recall", "num_pairs": 4, **drawn},
    }


CASES = (
    "text, packed",
    "text, padded",
    "text, truncated",
    "text, in order",
    "stdlib",
    "store, packed",
    "store, masked",
    "store, padded",
    "mixture",
    "dyck",
    "recall",
)


@pytest.fixture
def build(recipes: dict[str, Recipe], case: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], DataSet]:
    recipe = dict(recipes[case])
    if library := recipe.pop("library", None):
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))

    def build() -> DataSet:
        made: DataSet = build_component(Component(data.SHELF), recipe).build(3)  # type: ignore[attr-defined]
        return made

    return build


def rows(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([batch.tensors[name] for batch in batches]) for name in batches[0].tensors}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_kind_of_data_is_here(recipes: dict[str, Recipe]) -> None:
    assert tuple(recipes) == CASES
    assert {recipe["kind"] for recipe in recipes.values()} == set(data.SHELF.names())


@pytest.mark.parametrize("case", CASES)
def test_stream_is_the_same_for_all_ranks_and_workers_and_after_resuming_with_others(
    build: Callable[[], DataSet], case: str
) -> None:
    samples = build().split("train")
    steps = -(-2 * samples.num_samples // SIZE) + 3
    whole = rows([samples.batch(0, steps * SIZE)])
    for readers in (ONE, TWO, THREE):
        assert same(rows(readers.read(build, 0, steps)), whole), readers
    first, second = steps // 3, steps // 2
    resumed = [
        *TWO.read(build, 0, first),
        *ONE.read(build, first, second - first),
        *THREE.read(build, second, steps - second),
    ]
    assert same(rows(resumed), whole)


@pytest.mark.parametrize("case", [case for case in CASES if case != "mixture"])
def test_every_epoch_has_every_row_once(build: Callable[[], DataSet], case: str) -> None:
    samples = build().split("train")
    num_samples = samples.num_samples
    epochs = [samples.batch(epoch * num_samples, num_samples).tensors for epoch in range(3)]
    listed = [[tuple(map(tuple, row)) for row in zip(*(e[n].tolist() for n in sorted(e)), strict=True)] for e in epochs]
    assert sorted(listed[0]) == sorted(listed[1]) == sorted(listed[2])
    assert (listed[0] == listed[1]) == (case == "text, in order")


def test_two_ranks_with_workers_train_on_a_mixture_as_one_process_does(tiny: Tiny, recipes: dict[str, Recipe]) -> None:
    settings = (
        f"data={json.dumps(recipes['mixture'])}",
        "batch={size: 8, accumulation: 2}",
        "checkpoint.every_steps=3",
    )
    run = train_on_two_ranks(tiny, "mixed", *settings, "batch.workers=2", "stop.steps=5")
    assert losses(run) == pytest.approx(tiny.losses_of(*settings, "batch.workers=0", "stop.steps=5"), abs=1e-5)
    # One process without workers goes on with what two ranks with two each have begun.
    resume(run, "stop.steps=8", "batch.workers=0")
    assert losses(run) == pytest.approx(tiny.losses_of(*settings, "stop.steps=8"), abs=1e-5)
