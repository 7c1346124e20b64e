"""Jobs and measurements; and what every estimator on the shelf keeps to."""

import subprocess
import sys
from dataclasses import replace

import pytest
from tests.estimate.measured import gaissa, make_job, measure, zeus

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate import SHELF
from perjoule.estimate.contract import Epoch, Estimator, Hindsight, Job, Measurement, Needs, Scopes, Target

EPOCHS = tuple(Epoch(2.0, 100.0) for _ in range(20))


def build(kind: str) -> Estimator:
    built: Estimator = SHELF.load(kind)().build()
    return built


def full_job() -> Job:
    """Return a job that has what every estimator may need."""
    return make_job(epochs=50).revealed(Hindsight(2.0, 0.5), EPOCHS)


def test_a_job_counts_the_last_incomplete_batch_as_a_step() -> None:
    assert make_job(batch_size=32).steps_per_epoch == 313
    assert make_job(batch_size=10_000).steps_per_epoch == 1


def test_without_a_limit_a_device_may_draw_what_its_data_sheet_says() -> None:
    assert make_job("RTX 3090").limit_w == 350
    assert make_job("RTX 3090", limit_w=200).limit_w == 200


def test_runs_that_differ_in_power_limit_or_host_memory_share_a_configuration() -> None:
    job = make_job()
    assert job.configuration_key == replace(job, power_limit_w=100.0, ram_gb=8.0).configuration_key
    for other in (make_job("V100"), make_job("RTX 3090", "vgg16"), make_job(batch_size=64), make_job(sample_size=224)):
        assert job.configuration_key != other.configuration_key


def test_the_device_of_a_run_without_a_gpu_is_its_processor() -> None:
    assert Scopes(gpu_j=3.0, cpu_j=5.0).device_j == 3.0
    assert Scopes(cpu_j=5.0, ram_j=1.0).device_j == 5.0
    assert Scopes(ram_j=1.0).device_j is None


def test_a_measurement_reveals_its_duration_only_as_hindsight() -> None:
    one = measure(make_job(), 12.0, 100.0)
    assert one.job.hindsight is None
    assert one.hindsight == Hindsight(12.0)
    assert Measurement(make_job(), total_s=500.0, utilization=0.4).hindsight == Hindsight(500.0, 0.4)
    assert Measurement(make_job()).hindsight is None


def test_values_have_the_unit_of_their_target() -> None:
    one = replace(measure(make_job(), 12.0, 100.0), total_j=9.0)
    assert [(one.value(target), target.unit) for target in Target] == [(1200, "J"), (12, "s"), (100, "W"), (9, "J")]


@pytest.mark.parametrize("kind", SHELF.names())
def test_every_estimator_answers_each_of_its_targets_within_its_interval(kind: str) -> None:
    estimator = build(kind)
    assert estimator.kind == kind
    estimator.fit(gaissa())
    for target in estimator.targets:
        found = estimator.predict(full_job(), target)
        assert found.low < found.mean < found.high
        assert (found.unit, found.method) == (target.unit, kind)
        for again in estimator.predict_all([full_job(), full_job()], target):
            assert (again.low, again.mean, again.high) == pytest.approx((found.low, found.mean, found.high))


@pytest.mark.parametrize("kind", SHELF.names())
def test_every_estimator_refuses_a_target_that_it_does_not_know(kind: str) -> None:
    estimator = build(kind)
    for target in set(Target) - estimator.targets:
        with pytest.raises(ConfigError, match=f"{kind} does not estimate {target.value}: it knows "):
            estimator.predict(full_job(), target)


@pytest.mark.parametrize("kind", SHELF.names())
def test_an_estimator_uses_hindsight_only_if_it_says_so(kind: str) -> None:
    estimator = build(kind)
    if estimator.needs is not Needs.NOTHING:
        return
    estimator.fit(gaissa())
    for target in estimator.targets:
        short, long = (full_job().revealed(Hindsight(seconds)) for seconds in (1.0, 1000.0))
        assert estimator.predict(short, target) == estimator.predict(long, target)


@pytest.mark.parametrize("kind", SHELF.names())
def test_fitting_again_forgets_what_was_learned_before(kind: str) -> None:
    once, twice = build(kind), build(kind)
    once.fit(zeus())
    twice.fit(gaissa())
    twice.fit(zeus())
    target = min(once.targets)
    assert once.predict(full_job(), target) == twice.predict(full_job(), target)


@pytest.mark.parametrize("kind", ["physical", "pre_energy", "pre_power"])
def test_an_estimator_that_learns_refuses_to_predict_before(kind: str) -> None:
    with pytest.raises(DataError, match=f"{kind} must be fitted on measurements first"):
        build(kind).predict(full_job(), Target.ENERGY_PER_EPOCH)


def test_nothing_of_it_imports_torch() -> None:
    names = [SHELF.entries[kind].partition(":")[0] for kind in SHELF.names()]
    code = f"import sys, {', '.join(names)}, perjoule.estimate.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
