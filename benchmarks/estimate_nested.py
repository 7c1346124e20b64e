"""The table of docs/estimate.md: ours on what was left out, with widths that were chosen without any of it.

    python -m benchmarks.estimate_nested gaissa_training_energy.csv summary_power_v100.csv summary_power_p100.csv

For the rows of one study the widths of the priors are chosen by leaving out devices of the *other* study
(:mod:`perjoule.estimate.choice`); then configurations, architectures, data sets and devices are left out, as
``perjoule estimate --score`` does. At the end the widths are chosen on everything, which is what ``WIDTHS`` in
``step_model.py`` must be. Nothing is drawn that is not seeded: a second call prints the same. About ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perjoule.estimate.choice import choose_widths
from perjoule.estimate.contract import Measurement, Target
from perjoule.estimate.estimators.physical import PhysicalConfig
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.processes import side_by_side
from perjoule.estimate.scores import ask, table
from perjoule.estimate.splits import Fold, Split, folds, typical
from perjoule.estimate.step_model import WIDTHS, Widths
from perjoule.estimate.trials import OURS, Trial, by_device, calibrate, merge

ENERGY = Target.ENERGY_PER_EPOCH
_BRIGHT = {"RTX 3070", "RTX 3090"}


def leave_out(fold: Fold, split: Split, study: str, config: PhysicalConfig) -> Trial:
    """Ask ours about what one fold leaves out."""
    trial, method = Trial(), config.build()
    method.fit(fold.train)
    trial.ask(method, fold.test, split.value, study, ENERGY)
    if split is Split.CONFIGURATION:
        inception = [one for one in fold.test if one.job.workload.architecture.name == "inception_v3"]
        asked = [one for one in inception if one.job.device.name in _BRIGHT]
        trial.add(ask(method, asked, ENERGY), "configuration, InceptionV3", study, method, ENERGY)
    else:  # so that a group that is missed is not hidden by the others
        trial.ask(method, fold.test, f"{split.value}: {fold.name}", study, ENERGY)
    return trial


def trials(rows: Sequence[Measurement], study: str, widths: Widths) -> list[partial[Trial]]:
    """Return what is to be fitted and asked for one study."""
    config = PhysicalConfig.of(widths)
    tasks = [
        partial(leave_out, fold, split, study, config)
        for split in Split
        for fold in folds(rows, split, study)
        if any(one.trusted and one.scopes.device_j is not None for one in fold.test)
    ]
    for name, mine in by_device(rows).items():
        others = [one for one in rows if one.job.device.name != name]
        if any(one.study == study and one.trusted and one.scopes.device_j is not None for one in mine):
            tasks.append(partial(calibrate, others, mine, study, config))
    return tasks


def main() -> None:
    """Choose, leave out, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    begun_s = time.monotonic()
    runs = read_measurements(options.files, say=print)
    rows = typical([one for one in runs if one.job.workload.forward_flops > 0])
    tasks = []
    for study in dict.fromkeys(one.study for one in rows):
        other = [one for one in rows if one.study != study]
        print(f"widths for {study}, from {', '.join(dict.fromkeys(one.study for one in other))}:", flush=True)
        widths = choose_widths(other, lambda line: print(f"  {line}", flush=True), options.processes)
        print(f"  chosen: {widths}", flush=True)
        tasks += trials(rows, study, widths)
    for line in table([one for one in merge(side_by_side(tasks, options.processes)) if one.method == OURS]):
        print(line, flush=True)
    print("widths from everything:", flush=True)
    final = choose_widths(rows, lambda line: print(f"  {line}", flush=True), options.processes)
    print(f"  chosen: {final}, WIDTHS are {WIDTHS}")
    print(f"{time.monotonic() - begun_s:.0f} s")


if __name__ == "__main__":
    main()
