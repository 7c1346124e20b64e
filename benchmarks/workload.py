"""What the benchmarks train: the same model, data, optimizer and order of batches for every arm."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perjoule.core.seeding import derive
from perjoule.data.contract import Samples
from perjoule.data.prefetch import Prefetcher
from perjoule.measure.machine import MachineProfile, cpu_info
from perjoule.measure.recorder import Recorder
from perjoule.runs import folder
from perjoule.runs.folder import RunFolder
from perjoule.train import backend as backends
from perjoule.train.config import BackendConfig, TrainConfig
from perjoule.train.console import Console
from perjoule.train.costs import Costs
from perjoule.train.distributed import Ranks
from perjoule.train.job import Job
from perjoule.train.loop import Loop
from perjoule.train.optimizer import Clipper
from perjoule.train.session import Session
from perjoule.train.stopping import Goal, Progress, SignalFlag
from perjoule.train.stream import Stream

CLIP_NORM = 1.0
FULL = {"dim": 256, "num_layers": 4, "num_heads": 4, "ffn_dim": 688}
"""5.26 M parameters with 4096 tokens."""


def keep_freed_memory() -> None:
    """Work as training does on Linux: with one thread, and with the pages of freed tensors kept for later ones.

    Otherwise every large tensor costs new pages, which arms with many of them pay for, or do not, by chance.
    """
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as folder:
        backends.prepare(BackendConfig(allocator="keep", threads=1), Ranks(), MachineProfile(Path(folder)))


def config(
    model: dict[str, Any], seq_len: int, batch_size: int, folder: Path, quick: bool, seed: int = 0
) -> TrainConfig:
    """Return a recipe with a constant learning rate and PyTorch's own settings.

    Args:
        model: sizes of the Transformer.
        seq_len: tokens per row.
        batch_size: rows per step.
        folder: where run folders and, for a quick run, the text go.
        quick: read a few modules of the standard library in place of all of it, which takes a second to prepare.
        seed: of the weights and of the order of the samples.
    """
    data: dict[str, Any] = {"kind": "stdlib"}
    if quick:
        text = folder / "text.txt"
        modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))
        text.write_text("\n".join(path.read_text(encoding="utf-8") for path in modules), encoding="utf-8")
        fractions = {"train": 1.0, "validation": 0.0, "test": 0.0}
        data = {"kind": "text", "path": text, "cache": folder / "cache", "fractions": fractions}
        data["tokenizer"] = {"vocab_size": 512}
    return TrainConfig.model_validate(
        {
            "runs": folder / "runs",
            "seed": seed,
            "model": {"kind": "transformer", **model},
            "data": {**data, "seq_len": seq_len},
            "batch": {"size": batch_size},
            "optimizer": {"lr": 1e-3, "clip_norm": CLIP_NORM},
            "schedule": {"kind": "constant", "warmup_steps": 0},
            "backend": {**BackendConfig.PRESETS["plain"], "fused_optimizer": True},
        }
    )


@dataclass(frozen=True)
class Workload:
    """A recipe and its data, ready to be given to any training loop.

    Args:
        config: the recipe.
        samples: its training split; step s of every arm reads the positions from s·batch size on.
        shape: what the model is built from.
    """

    config: TrainConfig
    samples: Samples
    shape: Mapping[str, int]

    @classmethod
    def prepare(cls, config: TrainConfig) -> Workload:
        """Prepare the data."""
        data = config.data.build(config.seed)  # type: ignore[attr-defined]
        return cls(config, data.split("train"), data.shape)

    @property
    def rows(self) -> int:
        """Return the batch size."""
        return self.config.batch.size

    def model(self) -> nn.Module:
        """Return a new model with the weights that ``perjoule train`` would start from."""
        torch.manual_seed(derive(self.config.seed, "model"))
        module: nn.Module = self.config.model.build(self.shape)  # type: ignore[attr-defined]
        return module

    def optimizer(self, module: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
        """Return AdamW over the recipe's parameter groups."""
        return self.config.optimizer.build(module, fused)

    def goal(self, steps: int) -> Goal:
        """Return the end of a run of ``steps`` steps."""
        stop = self.config.stop.model_copy(update={"steps": steps})
        return Goal(stop, self.rows, self.samples.num_samples, self.rows * self.shape["seq_len"])


class OpenRun:
    """One perjoule run, ready to start: folder, session, recorder and loop as ``perjoule train`` has them.

    Args:
        workload: what to train.
        samples: where batches come from; None: the workload's.
        name: of the run folder.
        recorded: write the journal and the metrics lines (``record.enabled``).
        goal: when ``loop.run()`` returns.
        module: what to train; None: a new model.
        optimizer: of ``module``; None: a new one.
    """

    def __init__(
        self,
        workload: Workload,
        samples: Samples | None,
        name: str,
        recorded: bool,
        goal: Goal,
        module: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        record = workload.config.record.model_copy(update={"enabled": recorded})
        recipe = workload.config.model_copy(update={"record": record})
        path, ranks, console, progress = recipe.runs / name, Ranks(), Console(silent=True), Progress()
        profile = MachineProfile(recipe.runs)
        early = backends.prepare(recipe.backend, ranks, profile)
        backend = backends.choose(recipe.backend, torch.device("cpu"), early, profile)
        module = module or workload.model()
        backend.tune(module, workload.rows, profile)
        optimizer = optimizer or workload.optimizer(module, bool(backend.settings["fused_optimizer"]))
        stream = Stream(recipe.batch, recipe.debug, ranks, workload.samples.num_samples)
        self.folder = RunFolder.create(path, "", {}, {})
        console.log_to(path / folder.LOG)
        costs = Costs.of(recipe, progress, stream, None, module)
        parts = backend, module, optimizer, stream, None, progress, costs
        self.session = Session(recipe, path, self.folder, ranks, console, *parts)
        self.recorder: Recorder = self.session.begin(profile, {})
        self.console = console
        self.on_step = self.session.on_step(goal)
        job = Job(
            config=recipe,
            model=module,
            optimizer=optimizer,
            clipper=Clipper(list(module.parameters()), recipe.optimizer.clip_norm),
            batches=Prefetcher(samples or workload.samples, stream.ranges(0), workers=0).__enter__(),
            recorder=self.recorder,
            backend=backend,
            ranks=ranks,
            goal=goal,
            calendar=costs.calendar,
            signals=SignalFlag(),
            on_step=self.on_step,
            evaluate=self.session.evaluate,
            save=self.session.save,
        )
        self.loop = Loop(job, progress)

    def close(self) -> None:
        """Close the run's files."""
        self.recorder.close()
        self.console.close()
        self.folder.close()


def machine_line() -> str:
    """Return which machine this is and how busy it is."""
    cpu = cpu_info()
    amx = ", AMX" if "amx_bf16" in cpu["flags"] else ""
    load = os.getloadavg()[0]
    return f"machine: {cpu['model']}{amx}, {cpu['cores']} cores, torch {torch.__version__}, load average {load:.2f}"
