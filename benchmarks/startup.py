"""How long the command line takes to start, beside ``import torch``.

Run with ``python -m benchmarks.startup``. Every repetition runs all commands once, in turn, each in a process of its
own. Training is timed from the start of the process to the end of the first optimizer step, which the run's journal
gives on the same clock; data and the machine's profile are prepared before, and nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ratios import paired_ratio, spread
from perjoule.core.phases import STEP
from perjoule.runs.folder import event_path
from perjoule.runs.journal import END, read_journal

TORCH, AGAIN, TRAIN = "import torch", "import torch, again", "train, to the end of step 1"


def timed(command: Sequence[str]) -> float:
    """Run a command and return its wall seconds.

    Raises:
        CalledProcessError: if it fails.
    """
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def first_step_s(command: Sequence[str], run: Path) -> float:
    """Train and return the seconds from the start of the process to the end of the first step."""
    begun_ns = time.monotonic_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    journal = read_journal(event_path(run, 0, 0))
    records = journal.records
    ends = records[(records["phase"] == journal.header["phases"].index(STEP)) & (records["kind"] == END)]
    return (int(ends["t_ns"][0]) - begun_ns) / 1e9


def imports_torch(arguments: Sequence[str]) -> bool:
    """Return whether a perjoule command line imports torch."""
    code = (
        "import sys\nfrom perjoule.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
    return done.returncode != 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how long the command line takes to start")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="once, on little data; the figures mean little")
    options = parser.parse_args(arguments)
    repeats = 1 if options.quick else options.repeats
    print(f"load average {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name:
        measure(Path(name), repeats, options.quick)
    print(f"load average {os.getloadavg()[0]:.2f}")


def measure(folder: Path, repeats: int, quick: bool) -> None:
    """Time every command and print."""
    perjoule = str(Path(sys.executable).with_name("perjoule"))
    train = [perjoule, "train", f"runs={folder}", "stop.steps=1", "evaluate.batches=1"]
    if quick:
        text = folder / "text.txt"
        text.write_text(Path(subprocess.__file__).read_text(encoding="utf-8"), encoding="utf-8")
        fractions = "data.fractions={train: 1.0, validation: 0.0, test: 0.0}"
        train += ["data=text", f"data.path={text}", f"data.cache={folder / 'cache'}", fractions]
        train += ["data.tokenizer.vocab_size=300", "model.dim=64", "model.num_layers=1"]
    timed([*train, "name=first"])  # prepares the data and the machine's profile
    verbs = {"--help": ["--help"], "ls models": ["ls", "models"]}
    verbs["report RUN"] = ["report", str(folder / "first")]
    python = {"python -c pass": "pass", TORCH: "import torch", AGAIN: "import torch"}
    found: dict[str, list[float]] = {arm: [] for arm in (*python, *verbs, TRAIN)}
    for number in range(repeats):
        for arm, code in python.items():
            found[arm].append(timed([sys.executable, "-c", code]))
        for arm, words in verbs.items():
            found[arm].append(timed([perjoule, *words]))
        found[TRAIN].append(first_step_s([*train, f"name=run{number}"], folder / f"run{number}"))
    for arm, values in found.items():
        ratio = "" if arm == TORCH else f"ratio {arm} / {TORCH}: {paired_ratio(values, found[TORCH]).text(2)}; "
        print(f"{ratio}{arm} takes {spread(values).text()} s")
    for arm, words in verbs.items():
        print(f"{arm} imports torch: {'yes' if imports_torch(words) else 'no'}")
    manifest = json.loads((folder / f"run{repeats - 1}" / "manifest.json").read_text(encoding="utf-8"))
    print(f"start-up of the last training run, by part: {manifest['segments'][0]['startup_s']}")


if __name__ == "__main__":
    main()
