"""The benchmark of data loaders runs, and compares what it says it compares."""

from contextlib import ExitStack
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch
from benchmarks import data_loader
from tests.system.test_benchmarks import ratios


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> data_loader.Corpus:
    return data_loader.Corpus.write(tmp_path_factory.mktemp("loader"), 400_000)


def test_perjoule_is_compared_with_every_way_to_read_a_file(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.data_loader")
    peers = {
        "A/A",
        "memmap, gathered at once",
        "memmap, slices copied",
        "memmap, slices stacked",
        "DataLoader, 0 workers",
    }
    peers |= {"litdata, 0 workers"} if find_spec("litdata") else set()
    for shards in (1, data_loader.NUM_SHARDS):
        for clock in ("wall", "CPU time"):
            assert {f"perjoule, {shards} shards, 0 workers / {peer}, {clock}" for peer in peers} <= found.keys()
        for peer in ("DataLoader, 2 workers", "memmap, slices copied"):
            assert f"perjoule, {shards} shards, 2 workers / {peer}, wall" in found


def test_arms_read_the_same_text(corpus: data_loader.Corpus) -> None:
    """Every batch of every arm is inputs and, one further in the corpus, labels; perjoule's knows where they end."""
    text = corpus.tokens.tobytes()
    arms = {
        "perjoule": data_loader.perjoule(data_loader.packed(corpus, 1, seed=0), 0),
        "shards": data_loader.perjoule(data_loader.packed(corpus, data_loader.NUM_SHARDS, seed=1), 2),
        "gathered": data_loader.gathered(corpus),
        "sliced": data_loader.sliced(corpus),
        "stacked": data_loader.stacked(corpus),
        "loader": data_loader.data_loader(corpus, 0),
    }
    with ExitStack() as stack:
        for name, open_ in arms.items():
            for inputs, labels in islice(open_(stack), 3):
                data_loader.check((inputs, labels))
                ignored = labels == -100
                assert torch.equal(ignored, inputs == data_loader.BOS) or name not in {"perjoule", "shards"}
                for row in inputs:
                    assert row.to(torch.uint16).numpy().tobytes() in text
                assert torch.equal(torch.where(ignored, inputs.roll(-1, 1), labels)[:, :-1], inputs[:, 1:])


def test_an_arm_that_hands_over_something_else_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^a batch of \(2, 3\) torch.float32$"):
        data_loader.check((torch.zeros(2, 3), torch.zeros(2, 3)))
