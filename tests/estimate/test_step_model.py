"""The physical formula: what must hold whatever the figures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.estimate.measured import make_job

from perjoule.estimate.contract import Job
from perjoule.estimate.devices import DEVICES
from perjoule.estimate.step_model import LATENTS, Widths, evaluate, features, group_labels
from perjoule.estimate.workloads import ARCHITECTURES


def predict(*jobs: Job, **changed: float) -> tuple[list[float], list[float]]:
    """Return seconds per epoch and watts, with the latents at their priors' medians unless changed."""
    latents = {name: np.full(len(jobs), np.log(changed.get(name, one.value))) for name, one in LATENTS.items()}
    seconds, watts = np.exp(evaluate(features(jobs), latents))
    return seconds.tolist(), watts.tolist()


def test_larger_batches_never_make_an_epoch_slower() -> None:
    seconds, _ = predict(*(make_job(batch_size=size) for size in (8, 16, 32, 64, 128)))
    assert seconds == sorted(seconds, reverse=True)


def test_larger_batches_use_the_device_better_and_draw_more_power() -> None:
    _, watts = predict(*(make_job(batch_size=size) for size in (1, 8, 64, 512)))
    assert watts == sorted(watts)
    assert watts[0] < 0.7 * watts[-1]


def test_a_lower_power_limit_is_slower_and_draws_less() -> None:
    limits = (120, 180, 240, 300, 350)
    seconds, watts = predict(*(make_job(batch_size=256, limit_w=limit) for limit in limits))
    assert seconds == sorted(seconds, reverse=True)
    assert watts == sorted(watts)
    assert all(power <= limit for power, limit in zip(watts, limits, strict=True))


def test_a_power_limit_costs_less_time_than_it_saves_power() -> None:
    (low_s, high_s), (low_w, high_w) = predict(make_job(batch_size=256, limit_w=230), make_job(batch_size=256))
    assert low_s * low_w < high_s * high_w


def test_validation_adds_forward_passes_only() -> None:
    plain, checked = make_job(batch_size=256), make_job(batch_size=256, validation_samples=10_000)
    (plain_s, checked_s), _ = predict(plain, checked)
    assert 1.2 < checked_s / plain_s < 1.5


def test_a_slow_processor_bounds_the_time_of_small_steps_and_not_of_large_ones() -> None:
    jobs = (make_job("H100", batch_size=1), make_job("GTX 750 Ti", batch_size=256))
    (small, large), _ = predict(*jobs)
    (small_slow, large_slow), _ = predict(*jobs, host_s=40 * LATENTS["host_s"].value)
    assert small_slow > 2 * small
    assert large_slow < 1.05 * large


def test_groups_name_the_host_of_a_device_where_none_is_known() -> None:
    labels = group_labels([make_job(), replace(make_job("V100"), host="")])
    assert labels["host"] == ["host of RTX 3090", "host of V100"]
    assert labels["device"] == ["RTX 3090", "V100"]


@given(
    st.sampled_from(sorted(DEVICES)),
    st.sampled_from(sorted(ARCHITECTURES)),
    st.integers(1, 4096),
    st.floats(0.3, 1.0),
    st.lists(st.floats(-2.0, 2.0), min_size=len(LATENTS), max_size=len(LATENTS)),
)
def test_power_lies_between_0_and_the_limit_for_any_latents(
    device: str, architecture: str, batch_size: int, share: float, deviations: list[float]
) -> None:
    job = make_job(device, architecture, batch_size, limit_w=share * DEVICES[device].tdp_w)
    changed = {name: one.value * np.exp(dev) for (name, one), dev in zip(LATENTS.items(), deviations, strict=True)}
    (seconds,), (watts,) = predict(job, **changed)
    assert seconds > 0
    assert 0 < watts <= job.limit_w * 1.05


def test_every_latent_moves_seconds_or_watts() -> None:
    jobs = [make_job(architecture=name, batch_size=64, limit_w=150) for name in ("mobilenet_v2", "deepspeech2")]
    base = np.array(predict(*jobs))
    for name, one in LATENTS.items():
        assert np.abs(np.array(predict(*jobs, **{name: 1.5 * one.value})) / base - 1).max() > 1e-5, name


def test_a_recurrent_layer_reads_its_weights_however_small_the_batch() -> None:
    small, large = (make_job("V100", "deepspeech2", size, train_samples=size, sample_size=615) for size in (1, 16))
    (one, sixteen), _ = predict(small, large)
    assert one > 3 * ARCHITECTURES["deepspeech2"].serial_bytes / DEVICES["V100"].bandwidth
    assert sixteen < 4 * one


def test_a_step_that_waits_for_memory_draws_less_than_one_of_products() -> None:
    _, (products, memory) = predict(
        *(make_job("V100", name, 512, sample_size=size) for name, size in (("vgg16", 224), ("mobilenet_v2", 224)))
    )
    assert memory < 0.95 * products


def test_a_slow_processor_is_slow_in_all_that_it_does() -> None:
    jobs = (make_job("H100", "nasnet_mobile", 1), make_job("H100", "ncf", 16384, sample_size=1))
    base, slow = predict(*jobs)[0], predict(*jobs, host_slowness=2.0)[0]
    assert np.array(slow) / base == pytest.approx(2.0, rel=0.1)


def test_features_have_one_row_per_job() -> None:
    assert len(features([make_job(), make_job()])) == 2
    assert len(features([])) == 0
    assert features([make_job(batch_size=64)]).batch == pytest.approx([64])


def test_a_device_with_more_flops_than_bytes_for_them_reaches_less_of_its_peak() -> None:
    def speed_up(balance: float) -> float:
        (a40, slower), _ = predict(make_job("A40", "vgg16", 256), make_job("P100", "vgg16", 256), balance=balance)
        return slower / a40

    assert 1 < speed_up(0.5) < 0.8 * speed_up(0.01)


def test_a_device_that_idles_near_a_low_limit_still_works() -> None:
    limits = (100, 150, 200, 300)
    seconds, watts = predict(*(make_job("A40", "vgg16", 256, limit_w=limit) for limit in limits), idle=1.2)
    assert seconds[0] < 8 * seconds[-1]
    assert all(power <= limit for power, limit in zip(watts, limits, strict=True))


def test_widths_scale_the_priors_they_name_and_no_other() -> None:
    narrow, wide = Widths(device=0.5, host=0.2).latents(), Widths(device=1.0, host=0.4).latents()
    assert wide["compute"].groups["device"] == 2 * narrow["compute"].groups["device"]
    assert wide["compute"].groups["architecture"] == narrow["compute"].groups["architecture"]
    assert (narrow["host_slowness"].shared, narrow["host_slowness"].groups["host"]) == (0.2, 0.2)
