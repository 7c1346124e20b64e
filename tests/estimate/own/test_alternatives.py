from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.estimate.own.test_recipe import CALIBRATED, UNKNOWN, recipe
from tests.estimate.own.works import work

from perjoule.core.errors import ConfigError
from perjoule.estimate.devices import find_device
from perjoule.estimate.own.alternatives import rank
from perjoule.estimate.own.counting import Counted
from perjoule.estimate.own.recipe import Machine, RecipeEstimate, estimate_recipe
from perjoule.train.config import TrainConfig

BASE = ("stop.steps=300", "model={dim: 64, num_layers: 2}")


def estimate(overrides: Sequence[str], machine: Machine) -> RecipeEstimate:
    """A step's work grows with the batch and with the square of the width, from a fixed part on."""
    config: TrainConfig = recipe(*BASE, *overrides)
    size, width = config.batch.size / 8, config.model.dim / 64  # type: ignore[attr-defined]
    flops = 1e10 * size * width**2
    counted = Counted(work(float32_flops=flops, trained_parameters=1e6 * width**2), 800, int(2048 * size), 80)
    return estimate_recipe(config, counted, machine)


def test_alternatives_are_ranked_by_energy_at_equal_training() -> None:
    base = estimate((), CALIBRATED)
    found = rank(recipe(*BASE), CALIBRATED, base, estimate)
    for elsewhere in (False, True):
        joules = [one.joules for one in found if one.elsewhere is elsewhere]
        assert joules and joules == sorted(joules)
    sizes = {one.change: one for one in found if one.change.startswith("batch.size")}
    assert set(sizes) == {f"batch.size={size}" for size in (2, 4, 16, 32)}
    # The fixed part of a step is paid less often in large batches; the samples are the same.
    saved = {size: sizes[f"batch.size={size}"].saved_j or 0 for size in (2, 4, 32)}
    assert saved[2] < saved[4] < 0 < saved[32] < 1
    assert sizes["batch.size=32"].joules == pytest.approx(base.joules.mean * (1 - saved[32]))


def test_small_differences_are_marked() -> None:
    base = estimate((), CALIBRATED)
    found = {one.change: one for one in rank(recipe(*BASE), CALIBRATED, base, estimate)}
    assert found["batch.size=16"].within_error == (base.joules.low <= found["batch.size=16"].joules <= base.joules.high)


def test_devices_that_one_may_not_own_come_last_and_their_joules_are_not_compared_with_a_processors() -> None:
    found = rank(recipe(*BASE), CALIBRATED, estimate((), CALIBRATED), estimate)
    assert [one.elsewhere for one in found] == sorted(one.elsewhere for one in found)
    of_devices = [one for one in found if one.change.startswith("--device")]
    assert all(one.elsewhere and one.saved_j is None and one.within_error is None for one in of_devices)
    v100 = find_device("V100")
    on_v100 = Machine(UNKNOWN.model, {}, v100)
    mine = replace(v100, name="mine", bandwidth=2 * v100.bandwidth)
    among = rank(recipe(*BASE), on_v100, estimate((), on_v100), estimate, {"mine": mine})
    assert all(one.saved_j is not None for one in among)
    assert "--device 'mine'" in {one.change for one in among}


def test_precision_compiling_and_devices_are_tried_from_here() -> None:
    changes = {one.change for one in rank(recipe(*BASE), CALIBRATED, estimate((), CALIBRATED), estimate)}
    assert {"backend.precision=bf16-autocast", "backend.compile=true", "--device 'RTX 3090'"} <= changes
    assert not any("power limit" in change for change in changes)


def test_power_limits_are_tried_on_a_device() -> None:
    on_v100 = Machine(UNKNOWN.model, {}, find_device("V100"))
    found = {one.change: one for one in rank(recipe(*BASE), on_v100, estimate((), on_v100), estimate)}
    assert found["power limit 150 W"].saved_s <= 0
    assert "--device 'V100'" not in found
    assert "backend.compile=true" not in found


def test_a_change_that_the_recipe_refuses_is_no_alternative() -> None:
    def picky(overrides: Sequence[str], machine: Machine) -> RecipeEstimate:
        if overrides == ("batch.size=16",):
            raise ConfigError("no")
        return estimate(overrides, machine)

    changes = {one.change for one in rank(recipe(*BASE), CALIBRATED, estimate((), CALIBRATED), picky)}
    assert "batch.size=16" not in changes
    assert "batch.size=32" in changes
