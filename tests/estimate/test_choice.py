"""The choice of widths: by devices that are left out, and by nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from tests.estimate.measured import make_job, measure

from perjoule.core.errors import DataError
from perjoule.estimate import choice
from perjoule.estimate.choice import choose_widths, score_widths
from perjoule.estimate.contract import Measurement
from perjoule.estimate.step_model import LATENTS, Widths, evaluate, features


def runs(devices: dict[str, float]) -> list[Measurement]:
    """Return runs whose devices differ by factors in all that they do."""
    found = []
    for device, factor in devices.items():
        jobs = [make_job(device, network, size) for network in ("resnet50", "vgg16") for size in (16, 256)]
        latents = {name: np.full(len(jobs), np.log(one.value)) for name, one in LATENTS.items()}
        latents["device_slowness"] = latents["device_slowness"] + np.log(factor)
        seconds, watts = np.exp(evaluate(features(jobs), latents))
        found += [measure(job, float(s), float(w)) for job, s, w in zip(jobs, seconds, watts, strict=True)]
    return found


ALIKE = {"V100": 1.0, "P100": 1.0}
UNLIKE = {"V100": 0.2, "P100": 5.0}


def test_devices_that_differ_more_than_was_believed_want_wider_priors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CANDIDATES", {"device": (0.5, 2.0)})
    assert choose_widths(runs(UNLIKE), processes=1).device == 2.0
    said: list[str] = []
    assert choose_widths(runs(ALIKE), said.append, processes=1).device == 0.5
    assert len(said) == 2


def test_devices_whose_sensor_cannot_be_believed_are_not_left_out() -> None:
    doubted = [replace(one, trusted=False) for one in runs({"A40": 1.0})]
    widths, believed = Widths(), runs(ALIKE)
    assert score_widths([*believed, *doubted], widths) == pytest.approx(score_widths(believed, widths), abs=0.7)
    with pytest.raises(DataError, match="at least two must have been measured"):
        choose_widths([*runs({"V100": 1.0}), *doubted])
