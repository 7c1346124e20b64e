"""The course toolkit's own files with ours: its ``CodeCarbonStats`` in our loop, and ``PerjouleStats`` in its trainer.

``.peers/bin/python -m benchmarks.course_toolkit CHECKOUT FOLDER``: CHECKOUT is a clone of the toolkit's repository
(``COMP597-starter-code``; it is not part of this one), FOLDER takes the runs. On a machine without CUDA its stats would
fail at their first ``torch.cuda.synchronize``, in its trainer as in ours, so that this is replaced by nothing here.
Prints what each left behind.
"""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import perjoule
from perjoule.measure.bridges.perjoule_stats import PerjouleStats
from perjoule.runs.tables import load_run

STEPS = 4


class Small(nn.Module):
    """A model that answers as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        """Return an object with a loss."""
        return type("Output", (), {"loss": self.layer(x).pow(2).mean()})


def their_stats_in_our_loop(folder: Path) -> None:
    """Train twice: by the toolkit's constructor with its configuration, and by its class."""
    small = ("model.dim=32", "model.num_layers=1", "batch.size=2", f"stop.steps={STEPS}", f"runs={folder}")
    for number, form in enumerate(("construct_trainer_stats", "CodeCarbonStats"), 1):
        options = (f"stats=src.trainer.stats.codecarbon:{form}", f"stats_options.run_num={number}", f"name={form}")
        perjoule.train(perjoule.load(None, *small, *options))
        for path in sorted((folder / form / "stats").rglob("*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                names, *rows = csv.reader(file)
            print(f"{form}: {path.name}: {len(names)} columns, {len(rows)} rows, the first {rows[0][:2]}")


def our_stats_in_their_trainer(folder: Path) -> None:
    """Train with the toolkit's SimpleTrainer, and once more with a batch that it fails on."""
    trainer = importlib.import_module("src.trainer")
    for name, rows in (("ours", [{"x": torch.randn(3)} for _ in range(10)]), ("failed", [{"y": torch.randn(3)}])):
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        stats = PerjouleStats(folder / name)
        loader = stats.counted(torch.utils.data.DataLoader(rows, batch_size=4))  # type: ignore[arg-type]
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        theirs = trainer.SimpleTrainer(loader, model, optimizer, schedule, torch.device("cpu"), stats)
        try:
            with stats:
                theirs.train({})
        except TypeError as error:
            print(f"{name}: raised {error}")
        run = load_run(folder / name)
        print(f"{name}: {run.status}: {run.reason}; samples {run.steps.samples.tolist()}")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None
    their_stats_in_our_loop(Path(sys.argv[2]))
    our_stats_in_their_trainer(Path(sys.argv[2]))
