"""Our own run folders as measurements."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.system.tiny import Tiny, run_of

from perjoule.core.errors import ConfigError, DataError, RunFolderError
from perjoule.estimate.devices import Device
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.imports.runs import read_run
from perjoule.runs.folder import METRICS
from perjoule.runs.tables import load_run

METERED = ("energy.meters=[cpu_time]", "energy.sampler=thread", "stop.steps=12")


@pytest.fixture
def sheets(tiny: Tiny) -> Mapping[str, Device]:
    """Return a data sheet of this machine's processor, under the name that a manifest gives it."""
    name = str(load_run(run_of(tiny.train("stop.steps=1"))).segments[-1].facts["host"]["cpu"])
    return {name: Device(name, {"fp32": 1e11}, 1e10, 1e10, 65, 10, 2)}


def test_a_run_is_one_epoch_of_its_steps(tiny: Tiny, sheets: Mapping[str, Device]) -> None:
    run = run_of(tiny.train(*METERED))
    one = read_run(run, sheets)
    steps = load_run(run).steps.kept
    assert (one.job.steps_per_epoch, one.job.batch_size, one.job.epochs) == (12, 4, 1)
    assert one.seconds_per_epoch == pytest.approx(steps.wall_s.sum())
    assert one.job.workload.training_flops == pytest.approx(
        16 * float(load_run(run).fact("model", "flops_per_token_causal")), rel=1e-6
    )
    assert (one.study, one.replicate) == ("perjoule", run.name)


def test_energy_is_that_of_the_steps_by_scope_and_its_parts_add_up(tiny: Tiny, sheets: Mapping[str, Device]) -> None:
    one = read_run(run_of(tiny.train(*METERED)), sheets)
    assert one.scopes.gpu_j is None and one.scopes.cpu_j is not None
    assert len(one.epochs) == 11
    assert sum(part.joules for part in one.epochs) == pytest.approx(one.scopes.cpu_j * 11 / 12)
    assert one.watts == pytest.approx(one.scopes.cpu_j / (one.seconds_per_epoch or 0))


def test_a_run_that_was_not_metered_has_seconds_and_no_joules(tiny: Tiny, sheets: Mapping[str, Device]) -> None:
    one = read_run(run_of(tiny.train()), sheets)
    assert one.seconds_per_epoch and one.scopes.device_j is None and one.watts is None and one.epochs == ()


def test_a_processor_without_a_data_sheet_is_refused_by_name(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="no data sheet of the device"):
        read_measurements([run_of(tiny.train())])


def test_a_run_without_a_timed_step_teaches_nothing(tiny: Tiny) -> None:
    run = run_of(tiny.train())
    (run / METRICS).write_text("")
    with pytest.raises(DataError, match="no step of this run is timed: nothing to learn from"):
        read_run(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        read_measurements([tmp_path])
