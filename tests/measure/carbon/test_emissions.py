"""Grams from joules, with figures known by hand."""

from pathlib import Path

import numpy as np
import pytest

from perjoule.measure.carbon import Intensity
from perjoule.measure.carbon.emissions import Emissions, emissions, live_intensity
from perjoule.measure.contract import Unavailable
from perjoule.runs.carbon_series import CarbonSeries, append_intensity

KWH_J = 3.6e6


def series(*pairs: tuple[float, float], failures: tuple[str, ...] = ()) -> CarbonSeries:
    table = np.array(pairs, float).reshape(-1, 2)
    return CarbonSeries(table[:, 0], table[:, 1], "DE", failures=failures)


def emitted(times: list[float], kwh: list[float], known: CarbonSeries) -> Emissions:
    found = emissions(np.array(times), np.array(kwh) * KWH_J, known)
    assert isinstance(found, Emissions)
    return found


def test_a_constant_intensity_is_a_product() -> None:
    found = emitted([5.0, 6.0], [1.0, 2.0], series((0, 100)))
    assert found.gco2e == pytest.approx(300) and found.mean_g_per_kwh == pytest.approx(100)


def test_energy_meets_the_intensity_in_force_at_its_time() -> None:
    known = series((0, 100), (10, 400))
    assert emitted([9.9, 10.0], [1, 1], known).gco2e == pytest.approx(500)
    assert emitted([-5], [1], known).gco2e == pytest.approx(100), "before the first value, the first one"
    assert emitted([1e9], [1], known).gco2e == pytest.approx(400), "behind the last one, the last"


def test_pue_multiplies_and_the_interval_is_that_of_the_energy() -> None:
    found = emissions(np.array([1.0]), np.array([KWH_J]), series((0, 200)), pue=1.5, interval=(0.5, 2.0))
    assert isinstance(found, Emissions)
    assert (found.gco2e, found.low_gco2e, found.high_gco2e) == (300, 150, 600)
    assert found.mean_g_per_kwh == pytest.approx(200), "the intensity is without PUE"


def test_no_intensity_is_a_reason() -> None:
    found = emissions(np.array([1.0]), np.array([1.0]), series(failures=("down", "down", "late")))
    assert found == Unavailable("down; late")
    assert emissions(np.array([1.0]), np.array([1.0]), series()) == Unavailable("no carbon intensity was fetched")


def test_no_energy_has_no_mean_intensity() -> None:
    found = emitted([1.0], [0.0], series((0, 200)))
    assert found.gco2e == 0 and found.mean_g_per_kwh is None


def test_a_segments_intensity_is_weighted_by_its_power(tmp_path: Path) -> None:
    for t_wall_s, g_per_kwh in ((1000.0, 100), (1010.0, 400)):
        entry = {"zone": "DE", "kind": "life cycle, consumption", "estimated": t_wall_s > 1005}
        append_intensity(tmp_path, {"t_wall_s": t_wall_s, "g_per_kwh": g_per_kwh, **entry})
    edges_s, power_w = np.linspace(0, 20, 5), np.array([300.0, np.nan, 100.0, 0.0])
    found = live_intensity(tmp_path, 1000.0, edges_s, power_w)
    assert isinstance(found, Intensity)
    assert found.g_per_kwh == pytest.approx((300 * 100 + 100 * 400) / 400)
    assert (found.low, found.high, found.location) == (100, 400, "DE")
    assert found.source == "Electricity Maps, 2 values, 1 of them estimated, weighted by energy"
    assert found.kind == "life cycle, consumption"


def test_a_segment_without_values_or_energy_has_no_intensity(tmp_path: Path) -> None:
    edges_s = np.array([0.0, 1.0])
    assert live_intensity(tmp_path, 0.0, edges_s, np.array([5.0])) == Unavailable("no carbon intensity was fetched")
    append_intensity(tmp_path, {"t_wall_s": 0.5, "g_per_kwh": 100})
    found = live_intensity(tmp_path, 0.0, edges_s, np.array([np.nan]))
    assert found == Unavailable("no energy was read while the carbon intensity was fetched")
