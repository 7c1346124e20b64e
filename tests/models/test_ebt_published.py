"""The published form, one mask over both streams, against ours; and the benchmark that times them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import ebt as benchmark

from perjoule.models.ebt import EBT

ROOT = Path(__file__).parents[2]


def gradients(model: EBT, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter is not model.step_size_factor]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def test_published_form_has_the_same_loss_and_gradients() -> None:
    model = benchmark.ebt(50, 12)
    tensors = {name: torch.randint(50, (3, 12)) for name in ("input_ids", "labels")}
    start = torch.randn(3, 12, 50)
    theirs = gradients(model, benchmark.published_loss(model, tensors, start))
    ours = gradients(model, model(tensors, start=start).loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-5)


def test_ours_needs_fewer_flops_by_the_promised_factor() -> None:
    assert benchmark.body_flops(benchmark.PUBLISHED, 256) > 1.7 * benchmark.body_flops(benchmark.OURS, 256)
    assert benchmark.body_flops(benchmark.OURS, 256) < 5 * benchmark.body_flops(benchmark.TRANSFORMER, 256)


@pytest.mark.slow
def test_benchmark_prints_every_ratio_and_equal_losses() -> None:
    command = [sys.executable, "-m", "benchmarks.ebt", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^ratio (.+): (\d+\.\d+) \[", done.stdout, re.MULTILINE))
    assert set(found) == {
        *(f"time, {arm} / Transformer, 32" for arm in benchmark.ARMS[:-1]),
        "time, published form / ours, 32",
        "A/A, 32",
        "time, recomputing everything, published form / cached, context 64, batch 1",
        "time, recomputing everything, ours / cached, context 64, batch 1",
    }
    assert float(found["time, recomputing everything, ours / cached, context 64, batch 1"]) > 1.5
    (off,) = re.findall(r"losses differ by (\S+)", done.stdout)
    assert float(off) < 1e-5
    memories = [float(megabytes) for megabytes in re.findall(r"ms, (\d+) MB", done.stdout)]
    assert len(memories) == 4 and min(memories) > 0
