"""A model and a corpus small enough to train in a tenth of a second, and the ways to read back what a run did."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import perjoule
from perjoule.runs.folder import CONFIG, METRICS, read_manifest
from perjoule.runs.tables import load_run
from perjoule.train.resuming import TrainResult
from perjoule.train.run import train

SEQ_LEN = 16
VOCAB_SIZE = 320
WORDS = "the quick brown fox jumps over lazy dogs while seven wizards boil quartz in a vat of pure joules".split()


def write_corpus(folder: Path, num_documents: int = 60) -> Path:
    """Write text files of 20 to 120 words, each in an order of its own."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    for number in range(num_documents):
        words = generator.choices(WORDS, k=generator.randint(20, 120))
        (folder / f"{number:02d}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Tiny:
    """Trains a model of two layers on a corpus, into run folders of its own."""

    corpus: Path
    runs: Path

    def arguments(self, *overrides: str) -> list[str]:
        """Return the overrides of a whole recipe: five steps of four samples, one thread, nothing probed or metered."""
        return [
            "model.dim=32",
            "model.num_layers=2",
            "data.kind=text",
            f"data.path={self.corpus}",
            f"data.seq_len={SEQ_LEN}",
            f"data.tokenizer.vocab_size={VOCAB_SIZE}",
            "data.fractions={train: 0.8, validation: 0.1, test: 0.1}",
            "batch.size=4",
            "schedule.warmup_steps=2",
            "stop.steps=5",
            "evaluate.batches=2",
            "backend=plain",
            "backend.threads=1",
            "record.warmup_steps=0",
            "energy.sampler=off",
            f"runs={self.runs}",
            *overrides,
        ]

    def train(self, *overrides: str) -> TrainResult:
        return train(perjoule.load(None, *self.arguments(*overrides)))

    def losses_of(self, *overrides: str) -> list[float]:
        return losses(run_of(self.train(*overrides)))


def resume(run: Path, *overrides: str) -> TrainResult:
    return train(perjoule.load(str(run / CONFIG), *overrides), resume=run)


def run_of(result: TrainResult) -> Path:
    assert result.run is not None
    return result.run


def losses(run: Path) -> list[float]:
    """Return the loss of every step that led to the last weights."""
    kept = load_run(run).steps.kept
    assert kept.step.tolist() == list(range(1, len(kept) + 1))
    return [float(loss) for loss in kept.loss]


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind, as they were written."""
    lines = map(json.loads, (run / METRICS).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


def segments(run: Path) -> list[dict[str, Any]]:
    return list(read_manifest(run)["segments"])
