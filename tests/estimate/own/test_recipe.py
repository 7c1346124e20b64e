from dataclasses import replace
from pathlib import Path

import pytest
from tests.estimate.own.works import sample, work

import perjoule
from perjoule.core.errors import ConfigError
from perjoule.estimate.devices import find_device
from perjoule.estimate.own.counting import Counted
from perjoule.estimate.own.machine import fit, uncalibrated
from perjoule.estimate.own.recipe import Machine, RecipeEstimate, _memory, estimate_recipe
from perjoule.train.config import TrainConfig

STEP_S, WATTS = 0.1, 20.0
COUNTED = Counted(work(), samples_per_epoch=800, tokens_per_step=2048, held_out_samples=80)
CALIBRATED = Machine(fit([sample(work(), STEP_S, str(n), STEP_S * WATTS) for n in range(12)], 2), {"threads": 2})
UNKNOWN = Machine(uncalibrated(2), {})


def recipe(*overrides: str) -> TrainConfig:
    config: TrainConfig = perjoule.load(None, "data=recall", "evaluate.batches=1", *overrides).config
    return config


def estimate(*overrides: str, machine: Machine = CALIBRATED) -> RecipeEstimate:
    return estimate_recipe(recipe(*overrides), COUNTED, machine)


def test_time_and_energy_are_steps_times_what_a_step_takes() -> None:
    found = estimate("stop.steps=300")
    forward_s = STEP_S / 3  # the evaluation at the end
    assert found.step_s.mean == pytest.approx(STEP_S, rel=0.02)
    assert found.seconds.mean == pytest.approx(300 * STEP_S + forward_s, rel=0.02)
    assert found.joules.mean == pytest.approx(found.seconds.mean * WATTS)
    assert found.seconds.low < found.seconds.mean < found.seconds.high
    assert found.step_s.method == "calibrated on 12 configurations"


def test_evaluations_on_schedule_cost_forward_passes() -> None:
    without, with_them = estimate("stop.steps=300"), estimate("stop.steps=300", "evaluate.every_steps=10")
    assert with_them.seconds.mean - without.seconds.mean == pytest.approx(29 * STEP_S / 3, rel=0.03)


@pytest.mark.parametrize(("every_epochs", "every_steps"), [(0.1, 10), (0.25, 25), (2, 200), (0.001, 1)])
def test_evaluations_by_epochs_cost_what_those_by_steps_cost(every_epochs: float, every_steps: int) -> None:
    """An epoch has 100 steps."""
    stop = "stop={steps: 300, patience: 2}"
    by_epochs = estimate(stop, f"evaluate.every_epochs={every_epochs}")
    by_steps = estimate(stop, f"evaluate.every_steps={every_steps}")
    assert by_epochs.seconds.mean == pytest.approx(by_steps.seconds.mean)
    assert by_epochs.steps.low == by_steps.steps.low == min(300, 3 * every_steps)
    uneven = estimate("stop={steps: 300}", "evaluate.every_epochs=0.125")  # 24 times, the last behind the last step
    evaluations_s = uneven.seconds.mean - 300 * uneven.step_s.mean
    assert evaluations_s == pytest.approx(24 * STEP_S / 3, rel=0.03)


@pytest.mark.parametrize(
    ("end", "steps"),
    [("epochs: 2", 200), ("tokens: 20480", 10), ("{steps: 50, epochs: 1}", 50), ("{steps: 500, epochs: 1}", 100)],
)
def test_the_first_end_counts(end: str, steps: int) -> None:
    found = estimate(f"stop={end if end.startswith('{') else '{' + end + '}'}")
    assert found.steps.mean == steps
    assert found.samples == 8 * steps


def test_a_time_limit_is_met_and_the_steps_are_uncertain() -> None:
    found = estimate("stop={seconds: 60}")
    assert (found.seconds.low, found.seconds.mean, found.seconds.high) == (60, 60, 60)
    assert found.steps.mean == pytest.approx(600, rel=0.02)
    assert found.steps.low < found.steps.mean < found.steps.high
    assert found.joules.mean == pytest.approx(60 * WATTS)


@pytest.mark.parametrize("end", ["{energy: 1200}", "{energy: 1200, steps: 100000}", "{carbon: 0.1}"])
def test_an_energy_budget_is_met_and_the_time_is_uncertain(end: str) -> None:
    found = estimate(f"stop={end}", "carbon.intensity_g_per_kwh=300")  # 0.1 g are 1,200 J
    assert (found.joules.low, found.joules.mean, found.joules.high) == pytest.approx((1200, 1200, 1200))
    assert found.seconds.mean == pytest.approx(1200 / WATTS)
    assert found.gco2e is not None
    assert found.gco2e.mean == pytest.approx(0.1)


def test_patience_lowers_the_lower_ends_only() -> None:
    whole = estimate("stop.steps=1000", "evaluate.every_steps=50")
    early = estimate("stop={steps: 1000, patience: 3}", "evaluate.every_steps=50")
    assert early.steps.low == 4 * 50
    assert early.seconds.mean == whole.seconds.mean
    assert early.seconds.low == pytest.approx(whole.seconds.low / 5)
    assert any(note.startswith("stop.patience: it may end from step 200 on") for note in early.notes)
    budget = estimate("stop={energy: 12kJ, patience: 3}", "evaluate.every_steps=50")
    assert budget.joules.low < budget.joules.mean == 12000
    limit = estimate("stop={seconds: 600, patience: 3}", "evaluate.every_steps=50")
    assert limit.seconds.low < limit.seconds.mean == 600


def test_carbon_and_cost_include_the_pue() -> None:
    found = estimate("carbon={intensity_g_per_kwh: 360, pue: 1.5, price_per_kwh: 0.4, currency: EUR}")
    assert found.gco2e is not None
    assert found.cost is not None
    assert found.gco2e.mean == pytest.approx(found.joules.mean / 3.6e6 * 360 * 1.5)
    assert found.cost.mean == pytest.approx(found.joules.mean / 3.6e6 * 0.4 * 1.5)
    assert found.cost.unit == "EUR"


def test_what_is_not_known_is_said() -> None:
    found = estimate()
    assert found.gco2e is found.cost is None
    assert "cost: unknown, give carbon.price_per_kwh" in found.notes
    assert any(note.startswith("carbon: unknown, no location given") for note in found.notes)


def test_carbon_alone_is_no_end_without_a_fixed_intensity() -> None:
    overrides = ("stop={carbon: 1g}", "carbon={source: electricity_maps, zone: DE}")
    with pytest.raises(ConfigError, match=r"stop.carbon alone cannot be estimated without a fixed intensity"):
        estimate(*overrides)


def test_a_machine_that_was_not_calibrated_has_a_wide_interval_and_says_so() -> None:
    found = estimate(machine=UNKNOWN)
    assert found.step_s.high / found.step_s.low > 5
    assert found.joules.high / found.joules.low > 10
    assert found.step_s.method == "not calibrated"
    assert any("run perjoule estimate --calibrate" in note for note in found.notes)


def test_compiling_shortens_a_step() -> None:
    assert estimate("backend.compile=true").step_s.mean < 0.8 * estimate("backend.compile=false").step_s.mean


def test_memory_holds_weights_activations_and_the_interpreter() -> None:
    found = estimate().memory_bytes
    asked = COUNTED.work.weight_bytes + COUNTED.work.peak_bytes
    assert found.low < found.mean < found.high
    assert found.mean > asked + 2e8


@pytest.mark.parametrize(
    ("state_mb", "peak_mb", "measured_mb"),
    # transformer 64 x 2; RetNet 256, batch 16; transformer 512 x 6; EBT 128; LongNet 192;
    # the default recipe; as RetNet; 384 wide; with batches of 32
    [
        (7, 95, 507),
        (63, 699, 898),
        (278, 678, 1395),
        (22, 719, 1106),
        (40, 121, 526),
        (63, 273, 908),
        (63, 352, 768),
        (124, 241, 854),
        (63, 1092, 1658),
    ],
)
def test_the_peaks_that_were_measured_lie_in_their_intervals(
    state_mb: float, peak_mb: float, measured_mb: float
) -> None:
    found = _memory(work(weight_bytes=state_mb * 1e6, peak_bytes=peak_mb * 1e6), on_cpu=True)
    assert found.low < measured_mb * 1e6 < found.high


def test_a_named_device_is_scaled_from_its_data_sheet() -> None:
    slow, fast = (estimate(machine=replace(UNKNOWN, device=find_device(name))) for name in ("GTX 750 Ti", "H100"))
    assert fast.seconds.mean < slow.seconds.mean
    assert slow.joules.mean <= slow.seconds.mean * 60 * 1.01
    assert fast.seconds.high / fast.seconds.low > 2
    assert fast.notes[0].startswith("H100: scaled from its data sheet, nothing was measured")


def test_a_power_limit_never_raises_the_power() -> None:
    device = find_device("V100")
    free = estimate(machine=replace(UNKNOWN, device=device))
    limited = estimate(machine=replace(UNKNOWN, device=device, power_limit_w=100.0))
    assert limited.seconds.mean >= free.seconds.mean
    assert limited.joules.mean / limited.seconds.mean <= free.joules.mean / free.seconds.mean


def test_auto_precision_is_what_the_calibration_found() -> None:
    assert CALIBRATED.precision("auto") == "float32"
    assert replace(CALIBRATED, chosen={"precision": "bf16-autocast"}).precision("auto") == "bf16-autocast"
    assert replace(CALIBRATED, chosen={"precision": "bf16-autocast"}).precision("float32") == "float32"
    assert replace(UNKNOWN, device=find_device("A100")).precision("auto") == "bf16-autocast"
    assert replace(UNKNOWN, device=find_device("P100")).precision("auto") == "float32"


def test_the_default_recipe_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("stop: {steps: 7}\n")
    config: TrainConfig = perjoule.load(str(file)).config
    assert estimate_recipe(config, COUNTED, CALIBRATED).steps.method == "stop.steps"
