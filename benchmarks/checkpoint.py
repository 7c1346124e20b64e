"""How long saving stops training: perjoule's asynchronous checkpoint beside torch.save, in turn.

Run with ``python -m benchmarks.checkpoint``. The state is a Transformer with AdamW's two moments, 708 MB in float32.
``torch.save`` alone is what most loops do; with fsync and a rename it is as safe as perjoule's, checksums aside.
perjoule's first save also allocates the memory that later ones copy into, so it stands on its own line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.ratios import Spread, paired_ratio, spread
from benchmarks.workload import machine_line
from perjoule.models.transformer import TransformerConfig
from perjoule.train.checkpoint import Checkpointer, Saved, random_state
from perjoule.train.optimizer import OptimizerConfig
from perjoule.train.stopping import Progress

SIZES = {"dim": 768, "num_layers": 7, "num_heads": 12}
QUICK_SIZES = {"dim": 64, "num_layers": 2, "num_heads": 2}


def build(quick: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model whose optimizer has taken one step, so that its state exists."""
    config = TransformerConfig.model_validate(QUICK_SIZES if quick else SIZES)
    module = config.build({"vocab_size": 512 if quick else 6144, "seq_len": 256})
    optimizer = OptimizerConfig().build(module, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return module, optimizer


def plain_save(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the state as most loops do."""
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, path)


def safe_save(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the state so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    plain_save(module, optimizer, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def seconds(run: Callable[[], None]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how long saving stops training")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder unless given")
    parser.add_argument("--quick", action="store_true", help="a small state; the figures mean little")
    options = parser.parse_args(arguments)
    rounds = 3 if options.quick else options.rounds
    print(machine_line())
    module, optimizer = build(options.quick)
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        saved: list[Saved] = []
        checkpointer = Checkpointer(folder, module, optimizer, 1, True, saved.append)
        first = seconds(lambda: checkpointer.save(Progress(step=1), [random_state()]))
        checkpointer.wait()
        size = saved[0].num_bytes
        blocked: dict[str, list[float]] = {
            "perjoule": [],
            "perjoule, again": [],
            "torch.save": [],
            "torch.save, safe": [],
        }
        for number in range(rounds):
            os.sync()
            for arm, step in (("perjoule", 2 * number + 2), ("perjoule, again", 2 * number + 3)):
                blocked[arm].append(seconds(lambda s=step: checkpointer.save(Progress(step=s), [random_state()])))  # type: ignore[misc]
                checkpointer.wait()
            blocked["torch.save"].append(seconds(lambda: plain_save(module, optimizer, folder / "plain.pt")))
            os.sync()
            blocked["torch.save, safe"].append(seconds(lambda: safe_save(module, optimizer, folder / "safe.pt")))
        report(size, first, saved, blocked)
    print(machine_line())


def report(size: int, first: float, saved: Sequence[Saved], blocked: dict[str, list[float]]) -> None:
    """Print what each way of saving costs."""
    per_700_mb = 700e6 / size
    print(f"state: {size / 1e6:.1f} MB")
    print(f"perjoule, first save: training waits {first:.3f} s ({first * per_700_mb:.3f} s per 700 MB)")
    for arm, values in blocked.items():
        found: Spread = spread(values)
        print(f"{arm}: training waits {found.text()} s ({found.median * per_700_mb:.3f} s per 700 MB)")
    print(f"perjoule: on the disk {spread([one.write_s for one in saved[1:]]).text()} s later, beside training")
    for arm, values in blocked.items():
        if arm != "perjoule":
            label = "A/A" if arm == "perjoule, again" else f"{arm} / perjoule"
            print(f"ratio {label}: {paired_ratio(values, blocked['perjoule']).text(2)}")


if __name__ == "__main__":
    main()
