from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.ledgers import GERMANY, GPU, NO_ENERGY, account, bucket, cpu, gpu, ledger, mig
from tests.runs.synthetic import MODEL, SyntheticRun

from perjoule.measure.contract import Unavailable as NotMeasured
from perjoule.measure.ledger import Ledger, StepCurve
from perjoule.report.energy import ENERGY, energy_figures, sheets
from perjoule.report.page import run_page
from perjoule.report.quantity import Figure, Quantity, Unavailable
from perjoule.report.summary import LABELS, summarize
from perjoule.runs.step_table import StepTable
from perjoule.runs.tables import Run, load_run


@pytest.fixture
def metered(tmp_path: Path) -> Run:
    """Return a run of 20 steps, 5 of them warm-up, in Germany."""
    run = SyntheticRun(tmp_path / "metered")
    run.segment(warmup_steps=5, carbon=GERMANY | {"pue": 1.5, "price_per_kwh": 0.3, "currency": "EUR"})
    run.train(1, 20)
    return load_run(run.end())


def resumed_run(path: Path, second: dict[str, object] | None = None) -> Run:
    """Write a run whose second segment begins at step 11, behind a first one that came to step 13."""
    run = SyntheticRun(path)
    run.segment(carbon=GERMANY)
    run.train(1, 13)
    run.journal.close()
    run.segment(first_step=11, carbon=GERMANY | {"g_per_kwh": 720.0} if second is None else second)
    run.train(11, 20)
    return load_run(run.end())


def two_segments() -> Ledger:
    """Return 1000 J of the GPU over steps 1 to 13, then 500 J over steps 11 to 20."""
    first = gpu(
        window_uj=400_000_000, window_steps=10, by_step=StepCurve(np.arange(1, 14), np.arange(1, 14) * 70_000_000)
    )
    later = StepCurve(np.arange(11, 21), np.arange(1, 11) * 50_000_000)
    return ledger(first, gpu(0.5, segment=1, window_uj=300_000_000, window_steps=10, by_step=later))


def quantity(figure: Figure) -> Quantity:
    assert isinstance(figure, Quantity), figure
    return figure


def value(figure: Figure) -> float:
    return quantity(figure).value


def reason(figure: Figure) -> str:
    assert isinstance(figure, Unavailable), figure
    return figure.reason


def test_the_energy_of_a_run_equals_the_sum_of_the_outermost_domains(metered: Run) -> None:
    energy = quantity(energy_figures(metered, ledger())["energy_j"])
    assert energy.value == pytest.approx(1100)
    assert energy.bounds == pytest.approx((950 + 50, 1050 + 200))
    assert energy.provenance == "partly modelled"
    assert energy.how == (
        "measured: gpu-0 (energy counter); modelled: cpu (CPU time × watts); metered as well, but inside these: "
        "mig-0 on here"
    )


def test_the_word_of_a_figure_says_whether_it_is_modelled(metered: Run) -> None:
    assert quantity(energy_figures(metered, ledger(gpu()))["energy_j"]).provenance == "measured"
    assert {
        quantity(figure).provenance
        for name, figure in energy_figures(metered, ledger(cpu())).items()
        if name != "water_l"
    } == {"modelled"}


def test_what_a_step_a_sample_and_a_token_cost_equals_the_window_over_its_counts(metered: Run) -> None:
    figures = energy_figures(metered, ledger())
    assert value(figures["energy_window_j"]) == pytest.approx(550)
    assert value(figures["energy_per_step_j"]) == pytest.approx(550 / 15)
    assert value(figures["energy_per_sample_j"]) == pytest.approx(550 / 15 / 8)
    assert value(figures["energy_per_token_j"]) == pytest.approx(550 / 15 / 2048)
    assert value(figures["energy_per_useful_token_j"]) == pytest.approx(550 / 15 / 1536)
    assert value(figures["power_w"]) == pytest.approx(550 / 1.5)
    assert value(figures["flops_per_j"]) == pytest.approx(30e6 / (550 / 15 / 2048))
    assert quantity(figures["energy_per_step_j"]).bounds == pytest.approx((500 / 15, 625 / 15))
    assert quantity(figures["flops_per_j"]).bounds == pytest.approx((30e6 * 15 * 2048 / 625, 30e6 * 15 * 2048 / 500))
    assert quantity(figures["energy_per_step_j"]).n == 15


def test_carbon_and_price_equal_energy_times_factor_times_pue(metered: Run) -> None:
    figures = energy_figures(metered, ledger())
    carbon, price = quantity(figures["carbon_gco2e"]), quantity(figures["price"])
    assert carbon.value == pytest.approx(1100 / 3.6e6 * 360 * 1.5)
    assert carbon.bounds == pytest.approx((1000 / 3.6e6 * 540, 1250 / 3.6e6 * 540))
    assert (carbon.unit, carbon.provenance) == ("gCO2e", "partly modelled")
    assert carbon.how == "energy × 360 g/kWh (340 to 400; not part of the interval), DEU 2023, Ember, PUE 1.5"
    assert price.value == pytest.approx(1100 / 3.6e6 * 0.3 * 1.5)
    assert price.unit == "EUR"
    assert reason(figures["water_l"]) == "no factor given: carbon.water_l_per_kwh=…"


def test_without_a_location_there_is_no_carbon_and_the_reason(finished: Run) -> None:
    figures = energy_figures(finished, ledger())
    assert reason(figures["carbon_gco2e"]) == "no location given: carbon.location=… or carbon.intensity_g_per_kwh=…"
    assert sheets(finished, ledger())[0].gco2e == Unavailable(reason(figures["carbon_gco2e"]))


def test_water_and_money_are_computed_if_every_segment_has_the_factor(tmp_path: Path) -> None:
    with_water = GERMANY | {"water_l_per_kwh": 2.0, "pue": 1.5}
    run = SyntheticRun(tmp_path / "a")
    run.segment(carbon=with_water)
    run.train(1, 20)
    figures = energy_figures(load_run(run.end()), ledger(gpu()))
    assert value(figures["water_l"]) == pytest.approx(1000 / 3.6e6 * 3)
    assert reason(figures["price"]) == "no price given: carbon.price_per_kwh=…"
    other = resumed_run(tmp_path / "b", second=with_water)
    assert reason(energy_figures(other, two_segments())["water_l"]) == "no factor given: carbon.water_l_per_kwh=…"


def test_without_a_meter_every_figure_has_the_same_reason(finished: Run) -> None:
    assert {reason(figure) for figure in energy_figures(finished, NO_ENERGY).values()} == {"no meter in this run"}
    missing = {"nvidia": NotMeasured("no driver"), "rapl": NotMeasured("not readable", "ask the administrator")}
    unread = Ledger((), tuple(missing.items()))
    figures = energy_figures(finished, unread)
    assert {reason(figure) for figure in figures.values()} == {
        "no meter could be read; nvidia: no driver; rapl: not readable (remedy: ask the administrator)"
    }
    assert tuple(figures) == ENERGY == tuple(LABELS)[-len(ENERGY) :]


def test_a_run_that_is_all_warm_up_has_a_total_and_nothing_per_step(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=50)
    run.train(1, 20)
    figures = energy_figures(load_run(run.end()), ledger(gpu(window_uj=None, window_steps=0)))
    assert value(figures["energy_j"]) == pytest.approx(1000)
    for name in ("energy_window_j", "energy_per_step_j", "power_w", "flops_per_j"):
        assert reason(figures[name]) == "no step after the warm-up"


def test_a_run_without_steps_has_a_total(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    summary = summarize(load_run(run.kill()), ledger(gpu(window_uj=None, window_steps=0)))
    assert value(summary.energy_j) == pytest.approx(1000)
    assert reason(summary.energy_per_step_j) == "no step was completed"
    assert len(summary.cumulative_j) == 0


def test_a_window_that_no_reading_covers_is_not_divided(metered: Run) -> None:
    unread = ledger(gpu(window_uj=None, window_steps=0))
    assert reason(energy_figures(metered, unread)["energy_per_token_j"]) == "no reading covers the measured window"
    partly = ledger(gpu(), cpu(window_steps=7))
    assert reason(energy_figures(metered, partly)["power_w"]) == "not every domain was read over the same steps"


def test_what_the_window_does_not_have_is_not_a_divisor(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a", model={"kind": "resnet"})
    run.segment(warmup_steps=5)
    run.train(1, 20, tokens=0, useful=0)
    figures = energy_figures(load_run(run.end()), ledger(gpu()))
    assert reason(figures["energy_per_token_j"]) == "the window has no label positions, with ignored ones"
    assert reason(figures["flops_per_j"]) == "the window has no label positions, with ignored ones"
    assert value(figures["energy_per_sample_j"]) == pytest.approx(500 / 15 / 8)


def test_flops_per_joule_need_flops_and_an_energy_above_zero(tmp_path: Path, metered: Run) -> None:
    run = SyntheticRun(tmp_path / "a", model={"kind": "resnet"})
    run.segment(warmup_steps=5)
    run.train(1, 20)
    figures = energy_figures(load_run(run.end()), ledger(gpu()))
    assert reason(figures["flops_per_j"]) == "the model gives no FLOPs per token"
    assert MODEL["flops_per_token"] == metered.fact("model", "flops_per_token")
    nothing = account(GPU, [bucket("forward", 0.0)])
    figures = energy_figures(metered, ledger(nothing))
    assert value(figures["energy_per_token_j"]) == 0
    assert reason(figures["flops_per_j"]) == "the interval of the energy per token begins at 0"


def test_the_segments_of_a_resumed_run_add_up_each_with_its_own_intensity(tmp_path: Path) -> None:
    run = resumed_run(tmp_path / "a")
    figures = energy_figures(run, two_segments())
    assert value(figures["energy_j"]) == pytest.approx(1500)
    assert value(figures["energy_per_step_j"]) == pytest.approx(700 / 20)
    assert value(figures["carbon_gco2e"]) == pytest.approx((1000 * 360 + 500 * 720) / 3.6e6)
    (sheet,) = sheets(run, two_segments())
    assert (sheet.num_segments, sheet.num_steps) == (2, 23)
    assert isinstance(sheet.gco2e, dict)
    assert sheet.gco2e["backward"] == pytest.approx((450 * 360 + 225 * 720) / 3.6e6)
    assert sum(sheet.gco2e.values()) == pytest.approx(value(figures["carbon_gco2e"]))


def test_a_domain_inside_another_has_a_sheet_and_is_not_counted(metered: Run) -> None:
    found = sheets(metered, ledger(mig(), gpu(), cpu()))
    assert [(one.account.sensor.domain, one.counted, one.provenance) for one in found] == [
        ("gpu-0", True, "measured"),
        ("cpu", True, "modelled"),
        ("mig-0", False, "measured"),
    ]


def test_nested_phases_stand_behind_their_parent(metered: Run) -> None:
    names = ("data", "forward", "optimizer", "forward/think", "calibrate/data", "outside")
    (sheet,) = sheets(metered, ledger(account(GPU, [bucket(name, 1.0) for name in names])))
    assert [one.name for one in sheet.account.buckets] == [
        *("data", "forward", "forward/think", "optimizer", "calibrate/data", "outside")
    ]


def test_joules_by_step_go_on_over_a_resume_with_what_was_lost(tmp_path: Path) -> None:
    run = resumed_run(tmp_path / "a")
    joules = summarize(run, two_segments()).cumulative_j
    assert joules[:10] == pytest.approx(np.arange(1, 11) * 70)
    assert joules[10:] == pytest.approx(1000 + np.arange(1, 11) * 50)


def test_joules_by_step_are_unknown_where_a_domain_has_no_curve(metered: Run) -> None:
    cut = cpu(by_step=StepCurve(np.arange(1, 16), np.arange(15) * 1_000_000))
    joules = summarize(metered, ledger(gpu(), cut)).cumulative_j
    assert np.isfinite(joules[:15]).all() and np.isnan(joules[15:]).all()
    empty = cpu(by_step=StepCurve(np.empty(0, np.int64), np.empty(0, np.int64)))
    assert np.isnan(summarize(metered, ledger(gpu(), empty)).cumulative_j).all()


def test_a_segment_that_the_manifest_does_not_know_has_no_carbon(metered: Run) -> None:
    strange = ledger(replace(gpu(), segment=7))
    unknown = "its segment is not in the manifest"
    assert reason(energy_figures(metered, strange)["carbon_gco2e"]) == unknown
    assert sheets(metered, strange)[0].gco2e == Unavailable(unknown)


def test_a_page_of_a_million_steps_is_small(metered: Run) -> None:
    num = 1_000_000
    columns = {one.name: np.resize(getattr(metered.steps, one.name), num) for one in fields(StepTable)}
    steps = StepTable(**columns | {"step": np.arange(1, num + 1), "in_window": np.ones(num, bool)})
    curve = StepCurve(np.array([1, num]), np.array([0, 1_000_000_000]))
    summary = summarize(
        replace(metered, steps=steps), ledger(gpu(window_uj=500_000_000, window_steps=num, by_step=curve))
    )
    assert value(summary.energy_per_token_j) == pytest.approx(500 / num / 2048)
    assert summary.cumulative_j[[0, -1]] == pytest.approx([0, 1000])
    assert len(run_page(replace(metered, steps=steps), summary)) < 300_000
