import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.report.ledgers import GERMANY, NO_ENERGY, gpu, ledger
from tests.runs.synthetic import SyntheticRun, finished_run

from perjoule.core.errors import ConfigError
from perjoule.measure.carbon.table import look_up
from perjoule.report import wording
from perjoule.report.carbon import NO_CURRENCY, Factors, segment_factors, with_carbon
from perjoule.report.quantity import Quantity, Unavailable
from perjoule.report.summary import summarize
from perjoule.runs.carbon_series import CARBON
from perjoule.runs.tables import Run, load_run

LIVE = {"g_per_kwh": 300.0, "location": "DE", "source": "Electricity Maps", "kind": "life cycle, consumption"}


def run_with(path: Path, *carbon: Any) -> Run:
    """Write a run with one segment for each entry; None writes none."""
    run = SyntheticRun(path)
    for number, facts in enumerate(carbon):
        run.segment(first_step=5 * number + 1, **({} if facts is None else {"carbon": facts}))
        run.train(5 * number + 1, 5 * number + 5)
        if number < len(carbon) - 1:
            run.journal.close()
    return load_run(run.end())


def fetched(run: Run, *values: tuple[float, float]) -> None:
    """Write intensities that were fetched so many seconds after the run's begin."""
    began = datetime.fromisoformat(run.segments[0].facts["started"]).timestamp()
    lines = [
        json.dumps({"t_wall_s": began + at, "g_per_kwh": g, "zone": "DE", "kind": "consumption", "estimated": False})
        for at, g in values
    ]
    (run.path / CARBON).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_factors_of_a_segment_include_the_pue(tmp_path: Path) -> None:
    facts = GERMANY | {"pue": 1.5, "water_l_per_kwh": 2.0, "price_per_kwh": 0.2, "currency": "EUR"}
    facts |= {"why": "monthly means", "kind": "direct"}
    factors = segment_factors(run_with(tmp_path / "a", facts), ledger())[0]
    assert isinstance(factors, Factors)
    assert factors.gco2e_per_kwh == pytest.approx(540)
    assert factors.water_l_per_kwh == pytest.approx(3)
    assert factors.price_per_kwh == pytest.approx(0.3)
    assert factors.currency == "EUR"
    assert factors.how == (
        "360 g/kWh (340 to 400, monthly means; not part of the interval), DEU 2023, direct, Ember, PUE 1.5"
    )


def test_an_intensity_without_a_range_has_none(tmp_path: Path) -> None:
    given = {"g_per_kwh": 42.0, "low": None, "high": None, "location": "", "year": None, "source": "given by the user"}
    factors = segment_factors(run_with(tmp_path / "a", given), ledger())[0]
    assert isinstance(factors, Factors) and factors.how == "42 g/kWh, given by the user, PUE 1"
    assert (factors.water_l_per_kwh, factors.price_per_kwh) == (None, None)


def test_each_segment_has_its_own_factors_or_its_own_reason(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a", GERMANY, None, {"unavailable": "no answer", "pue": 1.2}, {"pue": 1.0})
    factors = segment_factors(run, ledger())
    nowhere = Unavailable("no location given: carbon.location=… or carbon.intensity_g_per_kwh=…")
    assert isinstance(factors[0], Factors)
    assert [factors[number] for number in (1, 2, 3)] == [nowhere, Unavailable("no answer"), nowhere]


def test_a_live_intensity_is_the_mean_over_the_energy_of_the_segment(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a", LIVE | {"pue": 2.0})
    fetched(run, (0.0, 100.0), (10.0, 500.0))
    factors = segment_factors(run, ledger(gpu()))[0]
    assert isinstance(factors, Factors)
    timeline = gpu().timeline
    late = timeline.edges_s[:-1] >= 10
    power_w = [float(timeline.power_w[rows][timeline.power_w[rows] > 0].sum()) for rows in (~late, late)]
    expected = (100 * power_w[0] + 500 * power_w[1]) / sum(power_w)
    assert factors.gco2e_per_kwh == pytest.approx(2 * expected)
    assert "(100 to 500, smallest and largest value while the run trained" in factors.how
    assert "Electricity Maps, 2 values, weighted by energy" in factors.how


def test_values_that_came_late_replace_a_first_failure(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a", {"unavailable": "no answer in 5 s", "pue": 1.0})
    assert segment_factors(run, ledger(gpu()))[0] == Unavailable("no answer in 5 s")
    fetched(run, (3.0, 250.0))
    factors = segment_factors(run, ledger(gpu()))[0]
    assert isinstance(factors, Factors) and factors.gco2e_per_kwh == pytest.approx(250)


def test_a_segment_that_used_a_table_ignores_what_another_one_fetched(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a", GERMANY, LIVE)
    fetched(run, (0.0, 100.0))
    factors = segment_factors(run, ledger(gpu(), gpu(segment=1)))
    found = [one.gco2e_per_kwh for one in factors.values() if isinstance(one, Factors)]
    assert found == pytest.approx([360, 100])


def test_a_live_intensity_without_energy_is_that_of_the_begin(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a", LIVE)
    fetched(run, (0.0, 100.0))
    factors = segment_factors(run, NO_ENERGY)[0]
    assert isinstance(factors, Factors) and factors.gco2e_per_kwh == 300


def test_place_and_price_may_be_given_after_the_run(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "a"))
    recorded = (tmp_path / "a" / "manifest.json").read_bytes()
    assert isinstance(summarize(run, ledger()).carbon_gco2e, Unavailable)
    told = with_carbon(run, ["carbon.location=FRA", "carbon.price_per_kwh=0.25", "carbon.currency=EUR"])
    summary = summarize(told, ledger())
    carbon, price = summary.carbon_gco2e, summary.price
    assert isinstance(carbon, Quantity) and isinstance(price, Quantity) and isinstance(summary.energy_j, Quantity)
    kwh = summary.energy_j.value / 3.6e6
    assert carbon.value == pytest.approx(kwh * look_up("FRA").g_per_kwh)
    assert "given with this report" in carbon.how
    assert price.value == pytest.approx(kwh * 0.25)
    assert price.unit == "EUR"
    assert any("carbon.location=FRA" in warning for warning in told.warnings)
    # The price alone leaves the place as it was; what nobody has named is not invented.
    dearer = summarize(with_carbon(told, ["carbon.price_per_kwh=0.5"]), ledger())
    assert isinstance(dearer.price, Quantity) and isinstance(dearer.carbon_gco2e, Quantity)
    assert dearer.price.value == pytest.approx(kwh * 0.5)
    assert dearer.price.unit == "EUR"
    assert dearer.carbon_gco2e.value == carbon.value
    alone = summarize(with_carbon(run, ["carbon.price_per_kwh=0.5"]), ledger())
    assert alone.carbon_gco2e == summarize(run, ledger()).carbon_gco2e, "a price needs no place"
    assert isinstance(alone.price, Quantity) and alone.price.unit == NO_CURRENCY
    assert alone.price.value == pytest.approx(kwh * 0.5)
    assert wording.leading(alone) == (*wording.LEADING, "price"), "what was asked for stands in front"
    assert isinstance(alone.water_l, Unavailable) and isinstance(alone.sheets[0].gco2e, Unavailable)
    wetter = summarize(with_carbon(run, ["carbon.water_l_per_kwh=2", "carbon.pue=1.5"]), ledger())
    assert isinstance(wetter.water_l, Quantity) and wetter.water_l.value == pytest.approx(kwh * 3)
    assert isinstance(wetter.price, Unavailable)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == recorded
    for wrong in ("carbon.location=FRANKREICHX", "carbon.place=FRA", "carbon.pue=0.5"):
        with pytest.raises(ConfigError):
            with_carbon(run, [wrong])
