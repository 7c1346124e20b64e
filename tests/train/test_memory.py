"""Memory that is not there: refused before it is taken, or one line when it was not enough; the run says so."""

import pytest
import torch
from tests.system.tiny import Tiny

from perjoule.core.errors import ConfigError, OutOfMemory
from perjoule.runs.folder import read_manifest
from perjoule.train import memory
from perjoule.train.memory import explained
from perjoule.train.optimizer import Clipper


@pytest.mark.parametrize("override", ["model.dim=1000000000", "model.dim=2000000"])
def test_a_model_that_fits_no_machine_is_refused_before_it_is_built(tiny: Tiny, override: str) -> None:
    with pytest.raises(ConfigError, match="model: ") as refused:
        tiny.train(override, "model.num_heads=1", "name=huge")
    assert "\n" not in str(refused.value)
    assert not (tiny.runs / "huge").exists()


def test_a_model_of_endless_layers_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_BUILDING_S", 0.2)
    with pytest.raises(ConfigError, match=r"model: it has [\d,]+ parameters and more; use fewer layers"):
        tiny.train("model.num_layers=1000000000")


def test_a_model_is_compared_with_what_this_machine_has_left(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    with pytest.raises(
        ConfigError, match=r"model: [\d,]+ weights or more need .* make the model or the vocabulary smaller"
    ):
        tiny.train("name=large")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8. TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore\nlines"),
    ],
)
def test_memory_that_was_not_enough_is_one_line_and_the_run_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(clipper: Clipper) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Clipper, "__call__", fail)
    with pytest.raises(OutOfMemory, match=r"smaller batch\.size \(now 4\), a larger batch\.accumulation") as caught:
        tiny.train("name=exhausted")
    assert "\n" not in str(caught.value)
    manifest = read_manifest(tiny.runs / "exhausted")
    assert (manifest["status"], manifest["reason"]) == ("failed", str(caught.value))


def test_another_error_stays_what_it_is() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert explained(error, 4, 1) is error


@pytest.mark.parametrize("size", [1_000_000_000, 10**15])
def test_a_batch_whose_ids_alone_do_not_fit_is_refused(tiny: Tiny, size: int) -> None:
    with pytest.raises(ConfigError, match=r"batch\.size: [\d,]+ samples .* accepted: less than [\d,]+"):
        tiny.train(f"batch.size={size}", "name=huge")
    assert not (tiny.runs / "huge").exists()
