"""Estimates before training against what training then took, on this machine.

Twenty configurations that the calibration set does not contain (architecture, width, depth, batch, sequence length,
vocabulary, precision) are estimated and then trained for some seconds. The calibration is made first, in the same
process. A line is printed for each with its error, then the median, the largest and the coverage of the 90 % interval;
beside it the prior, that is, what is estimated without a calibration.

    python benchmarks/estimate_own.py [--quick]

On a quiet machine with two cores it takes about two minutes; with ``--quick`` one, with five configurations.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import perjoule
from perjoule.core.limits import num_cores
from perjoule.estimate.own.calibration import (
    Trainer,
    calibrate,
    configurations,
    here,
    measure,
    overrides_of,
    read_calibration,
)
from perjoule.estimate.own.counting import count
from perjoule.estimate.own.machine import fit, uncalibrated
from perjoule.measure.machine import MachineProfile
from perjoule.train.console import Console
from perjoule.train.run import train

SHAPES = (
    ("transformer", 192, 4, 4, 255, 512, 0),
    ("transformer", 320, 2, 8, 127, 2048, 1),
    ("transformer", 96, 4, 16, 63, 256, 0),
    ("transformer", 512, 2, 2, 255, 1024, 1),
    ("transformer", 128, 2, 32, 63, 1024, 0),
    ("transformer", 192, 3, 1, 1023, 512, 0),
    ("transformer", 256, 4, 8, 255, 4096, 1),
    ("transformer", 64, 8, 4, 127, 128, 0),
    ("retnet", 192, 2, 4, 255, 512, 0),
    ("retnet", 64, 4, 8, 255, 1024, 0),
    ("retnet", 256, 3, 4, 127, 512, 1),
    ("retnet", 128, 2, 16, 63, 2048, 0),
    ("longnet", 96, 3, 4, 255, 1024, 0),
    ("longnet", 192, 2, 8, 127, 256, 1),
    ("longnet", 64, 2, 4, 511, 256, 0),
    ("longnet", 320, 2, 2, 127, 1024, 0),
    ("ebt", 128, 2, 4, 127, 512, 0),
    ("ebt", 96, 3, 2, 255, 256, 0),
    ("ebt", 128, 2, 8, 63, 512, 1),
    ("ebt", 256, 1, 2, 127, 1024, 0),
)
"""Kind, dim, num_layers, batch size, seq_len, vocabulary, and whether in the machine's fastest precision."""


@dataclass(frozen=True)
class Row:
    """A configuration, estimated and measured."""

    name: str
    estimated_s: float
    low_s: float
    high_s: float
    prior_s: float
    measured_s: float
    estimated_j: float | None
    measured_j: float | None

    @property
    def energy_error(self) -> float:
        """Return the relative error of the energy, NaN if it is not metered."""
        return np.nan if self.estimated_j is None or self.measured_j is None else self.estimated_j / self.measured_j - 1

    @property
    def error(self) -> float:
        """Return the relative error of the estimate."""
        return self.estimated_s / self.measured_s - 1

    @property
    def prior_error(self) -> float:
        """Return that of the estimate without a calibration."""
        return self.prior_s / self.measured_s - 1

    @property
    def covered(self) -> bool:
        """Return whether the interval holds what was measured."""
        return self.low_s <= self.measured_s <= self.high_s


def silently(config: Any, *, recipe: str) -> Any:
    return train(config, recipe=recipe, console=Console(silent=True))


def test_set(num: int) -> dict[str, tuple[str, ...]]:
    precisions = here()
    chosen = SHAPES if num >= len(SHAPES) else SHAPES[:: len(SHAPES) // num][:num]
    return dict(overrides_of(*shape[:6], precisions[-1 if shape[6] else 0]) for shape in chosen)


def compare(trainer: Trainer, profile: MachineProfile, which: Mapping[str, Sequence[str]], seconds: float) -> list[Row]:
    known = read_calibration(profile)
    assert known is not None
    threads = int(known.chosen.get("threads") or num_cores())
    model, prior = fit(known.samples, threads), uncalibrated(threads)
    rows = []
    for name, overrides in which.items():
        config = trainer.load(None, *overrides).config
        work = count(config, config.backend.precision).work
        found = model.step_s(work)
        taken, _ = measure(trainer, name, overrides, seconds)
        joules = None if model.watts is None else found.mean * model.watts.mean
        prior_s = prior.step_s(work).mean
        row = Row(name, found.mean, found.low, found.high, prior_s, taken.step_s, joules, taken.step_j)
        rows.append(row)
        times = f"{row.estimated_s * 1e3:8.1f} ms  {row.measured_s * 1e3:8.1f} ms"
        print(
            f"{name:<62} {times}  {row.error:+7.1%}  energy {row.energy_error:+7.1%}  prior {row.prior_error:+5.0%}",
            flush=True,
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="estimates before training against what training took")
    parser.add_argument("--quick", action="store_true", help="a short calibration and five configurations")
    options = parser.parse_args(arguments)
    seconds, rounds, num = (0.4, 1, 5) if options.quick else (1.2, 2, len(SHAPES))
    trainer = Trainer(perjoule.load, silently)
    with tempfile.TemporaryDirectory() as folder:
        profile = MachineProfile(Path(folder))
        for line in calibrate(trainer, profile, seconds, rounds):
            print(line, flush=True)
        which = test_set(num)
        assert not set(which) & set(configurations(here())), "a test configuration is in the calibration set"
        print(f"\n{'configuration':<62} {'estimated':>11}  {'measured':>11}  {'error':>7}")
        rows = compare(trainer, profile, which, seconds)
    errors, priors = [abs(row.error) for row in rows], [abs(row.prior_error) for row in rows]
    print(f"\nmedian error {np.median(errors):.1%}, largest {max(errors):.1%} (prior: median {np.median(priors):.0%})")
    energies = [abs(row.energy_error) for row in rows]
    print(f"energy: median error {np.median(energies):.1%}, largest {max(energies):.1%}")
    width = np.median([np.sqrt(row.high_s / row.low_s) for row in rows]) - 1
    print(f"half width of the interval {width:.0%} in the median")
    print(f"90 % interval covers {sum(row.covered for row in rows)} of {len(rows)}")
    return rows


if __name__ == "__main__":
    main()
