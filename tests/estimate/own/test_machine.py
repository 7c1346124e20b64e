import math

import numpy as np
import pytest
from tests.estimate.own.works import sample, work

from perjoule.estimate.own.machine import TERMS, fit, prior_seconds, terms, uncalibrated
from perjoule.estimate.own.work import Work

NUM = 20


def works(num: int, seed: int) -> list[Work]:
    """Return steps whose amounts vary independently over a factor of 30."""
    random = np.random.default_rng(seed)
    names = ("float32_flops", "attention_flops", "product_bytes", "moved_bytes", "num_calls", "trained_parameters")
    base = work()
    return [work(**{name: getattr(base, name) * 30 ** random.uniform(-0.5, 0.5) for name in names}) for _ in range(num)]


def machine_s(of: Work) -> float:
    """A machine that is twice as fast as the prior with products, and three times as slow with calls."""
    factors = {"float32_flops": 0.5, "num_calls": 3.0}
    parts = prior_seconds([of], threads=2)[0]
    return float(sum(factors.get(name, 1.0) * part for name, part in zip(TERMS, parts, strict=True)))


def test_a_machine_is_learned_from_configurations_and_predicts_others() -> None:
    model = fit([sample(one, machine_s(one)) for one in works(NUM, seed=0)], threads=2)
    missed = [model.step_s(one).mean / machine_s(one) - 1 for one in works(NUM, seed=1)]
    assert np.abs(missed).max() < 0.05
    learned = dict(zip(TERMS, model.factors, strict=True))
    assert learned["float32_flops"] == pytest.approx(0.5, rel=0.1)
    assert learned["num_calls"] > 1.5  # a small part of these steps


def test_the_interval_covers_new_configurations_with_noise() -> None:
    covered = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        noisy = [sample(one, machine_s(one) * math.exp(random.normal(0, 0.1))) for one in works(NUM, seed)]
        model = fit(noisy, threads=2)
        for one in works(NUM, seed + 100):
            found, true = model.step_s(one), machine_s(one) * math.exp(random.normal(0, 0.1))
            covered.append(found.low <= true <= found.high)
    assert 0.85 <= np.mean(covered) <= 0.99


def test_one_configuration_that_a_neighbour_slowed_down_hardly_counts() -> None:
    given = works(NUM, seed=0)
    samples = [sample(one, machine_s(one) * (4 if number == 3 else 1)) for number, one in enumerate(given)]
    model = fit(samples, threads=2)
    missed = [abs(model.step_s(one).mean / machine_s(one) - 1) for one in works(NUM, seed=1)]
    assert np.median(missed) < 0.05


def test_processor_time_is_used_where_wall_time_is_noise() -> None:
    random = np.random.default_rng(0)
    given = works(NUM, seed=0)
    stolen = random.uniform(1, 2.5, NUM)
    samples = [sample(one, machine_s(one) * slow) for one, slow in zip(given, stolen, strict=True)]
    quiet = [
        type(one)(**{**vars(one), "cpu_s": 2 * machine_s(one.work)}) for one in samples
    ]  # two threads, whatever the neighbours do
    model = fit(quiet, threads=2)
    missed = [abs(model.step_s(one).mean / (machine_s(one) * np.median(stolen)) - 1) for one in works(NUM, seed=1)]
    assert np.median(missed) < 0.05


def test_nothing_takes_negative_time() -> None:
    model = fit([sample(one, 1e-4) for one in works(NUM, seed=0)], threads=2)
    assert (model.factors >= 0).all()


def test_an_unknown_machine_has_a_wide_interval_around_a_common_processor() -> None:
    model = uncalibrated(threads=2)
    found = model.step_s(work())
    assert found.high / found.low > 5
    assert model.watts is None
    assert fit([], threads=2).num_samples == 0


def test_a_single_sample_narrows_no_interval_to_nothing() -> None:
    one = work()
    found = fit([sample(one, machine_s(one))], threads=2).step_s(one)
    assert found.high / found.low >= 1.8


def test_power_is_that_of_the_calibration() -> None:
    samples = [sample(one, 0.1, step_j=0.1 * watts) for one, watts in zip(works(3, 0), (10, 12, 20), strict=True)]
    model = fit(samples, threads=2)
    assert model.watts is not None
    assert model.watts.mean == pytest.approx(12)
    assert 10 <= model.watts.low < 12 < model.watts.high <= 20
    assert model.meters == "measured: cpu"


def test_every_term_of_the_sum_is_counted() -> None:
    assert (terms(work(bf16_flops=1.0, bf16_attention_flops=1.0, bf16_bytes=1.0)) > 0).all()


def test_a_step_unlike_all_samples_is_less_certain_than_one_like_them() -> None:
    """None of the samples did anything in bf16, so that its speed is that of the prior."""
    model = fit([sample(one, machine_s(one)) for one in works(NUM, seed=0)], threads=2)
    known, new = model.step_s(work()), model.step_s(work(float32_flops=0.0, bf16_flops=1e11))
    assert new.high / new.low > 1.5 * known.high / known.low


def test_the_better_samples_predict_one_another_the_narrower_is_the_interval() -> None:
    widths = []
    for sd in (0.02, 0.1, 0.3):
        random = np.random.default_rng(0)
        noisy = [sample(one, machine_s(one) * math.exp(random.normal(0, sd))) for one in works(NUM, 0)]
        found = fit(noisy, threads=2).step_s(work())
        widths.append(found.high / found.low)
    assert widths == sorted(widths)
    assert widths[0] < 1.4 < 2 < widths[-1]


def test_micro_batches_multiply_the_work_but_neither_memory_nor_optimizer() -> None:
    one, four = work(), work().times(4)
    assert (four.flops, four.num_calls, four.all_bytes) == (4 * one.flops, 4 * one.num_calls, 4 * one.all_bytes)
    assert (four.memory_bytes, four.trained_parameters) == (one.memory_bytes, one.trained_parameters)
