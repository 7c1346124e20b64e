"""The Gaussian model: it finds what was put in, knows what it does not know, and leaves out what it says."""

from dataclasses import replace

import numpy as np
import pytest
from tests.estimate.measured import make_job

from perjoule.estimate.contract import Job
from perjoule.estimate.hierarchy import Hierarchy, Prediction, Rows, remainder_kernel
from perjoule.estimate.step_model import LATENTS, Floats, evaluate, features

DEVICES = ("RTX 3090", "RTX 3070", "V100")
NETWORKS = ("resnet50", "vgg16", "mobilenet_v2")


def grid(devices: tuple[str, ...] = DEVICES, networks: tuple[str, ...] = NETWORKS) -> list[Job]:
    sizes = (16, 64, 256)
    return [make_job(device, network, size) for device in devices for network in networks for size in sizes]


def truth(jobs: list[Job], **factors: float) -> Floats:
    """Return what the formula gives with some latents multiplied by a factor."""
    latents = {name: np.full(len(jobs), np.log(one.value * factors.get(name, 1.0))) for name, one in LATENTS.items()}
    return evaluate(features(jobs), latents)


def seconds_error(prediction: Prediction, expected: Floats) -> float:
    return float(np.abs(prediction.mean[0] - expected[0]).max())


def test_it_learns_from_measured_devices_what_it_tells_of_another() -> None:
    # All devices reach half of what the prior says; nothing of the fourth has been measured.
    log_y = truth(grid(), compute=0.5, memory=0.5, latency_s=2.0)
    new = grid(("A40",))
    expected = truth(new, compute=0.5, memory=0.5, latency_s=2.0)
    before = np.abs(truth(new)[0] - expected[0]).max()
    assert seconds_error(Hierarchy(grid(), log_y).predict(new), expected) < 0.4 * before


def test_it_interpolates_what_was_measured() -> None:
    log_y = truth(grid(), compute=0.7, host_s=2.0)
    model = Hierarchy(grid(), log_y)
    assert seconds_error(model.predict(grid()), log_y) < 0.02
    between = [make_job(batch_size=32), make_job(batch_size=128)]
    assert seconds_error(model.predict(between), truth(between, compute=0.7, host_s=2.0)) < 0.05


def test_uncertainty_grows_from_a_known_batch_to_a_new_device() -> None:
    model = Hierarchy(grid(), truth(grid()))
    known, batch, network, device, both = (
        model.predict([job]).sd[:, 0]
        for job in (
            make_job(batch_size=64),
            make_job(batch_size=1024),
            make_job(architecture="xception"),
            make_job("A40"),
            make_job("A40", "xception"),
        )
    )
    for smaller, larger in ((known, batch), (known, network), (known, device), (device, both), (network, both)):
        assert (smaller[0] < larger[0]) and (smaller[2] < larger[2])


def test_a_figure_that_was_not_measured_is_not_needed() -> None:
    log_y = truth(grid())
    log_y[1, ::2] = np.nan
    log_y[0, 1] = np.nan
    found = Hierarchy(grid(), log_y).predict(grid())
    assert np.isfinite(found.mean).all() and np.isfinite(found.sd).all()
    assert np.abs(found.mean - truth(grid())).max() < 0.1


def test_a_single_row_is_enough_to_fit() -> None:
    job = make_job()
    log_y = truth([job]) + 0.5
    near, far = Hierarchy([job], log_y).predict([job, make_job("V100", "vgg16", 512)]).sd.T
    assert (near < far).all()


def test_leaving_a_group_out_agrees_with_a_fit_without_it() -> None:
    jobs = grid()
    log_y = truth(jobs) + np.random.default_rng(0).normal(0, 0.1, (2, len(jobs)))
    groups = [f"{job.workload.architecture.name}/{job.batch_size}/{job.device.name}" for job in jobs]
    left_out = Hierarchy(jobs, log_y).leave_out(groups)
    for at in (0, 7, 20):
        rest = [index for index in range(len(jobs)) if index != at]
        again = Hierarchy([jobs[index] for index in rest], log_y[:, rest]).predict([jobs[at]])
        assert left_out.mean[:2, at] == pytest.approx(log_y[:, at] - again.mean[:, 0], abs=0.05)
        assert left_out.sd[:, at] == pytest.approx(again.sd[:, 0], rel=0.15)


def test_the_error_of_the_joules_is_that_of_seconds_and_watts() -> None:
    jobs = grid()
    log_y = truth(jobs) + np.random.default_rng(1).normal(0, 0.1, (2, len(jobs)))
    log_y[1, 4] = np.nan
    left_out = Hierarchy(jobs, log_y).leave_out([job.device.name for job in jobs])
    measured = [index for index in range(len(jobs)) if index != 4]
    assert left_out.mean[2, measured] == pytest.approx(left_out.mean[:2, measured].sum(axis=0))
    assert np.isnan(left_out.mean[1:, 4]).all() and np.isfinite(left_out.mean[0, 4])


def test_the_remainder_is_a_covariance() -> None:
    rows = Rows([*grid(), replace(make_job(), power_limit_w=200.0)])
    kernel = remainder_kernel(rows, rows)
    assert kernel == pytest.approx(kernel.T)
    assert np.linalg.eigvalsh(kernel).min() > -1e-9
    others = Rows([make_job("A40", "bert_base_uncased")])
    assert remainder_kernel(others, rows) == pytest.approx(0)


def test_a_wild_start_does_not_keep_it_from_fitting() -> None:
    log_y = truth(grid(), compute=0.05, host_s=20.0, dynamic=0.6)
    assert seconds_error(Hierarchy(grid(), log_y).predict(grid()), log_y) < 0.1
