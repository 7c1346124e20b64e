"""`perjoule estimate` from its request to its lines, with real calibration runs of a tiny set."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.system.tiny import Tiny, run_of

import perjoule
from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.own import calibration, verb
from perjoule.estimate.own.calibration import (
    KEPT,
    UNDER_WAY,
    Trainer,
    calibrate,
    calibrate_compiled,
    configurations,
    read_calibration,
    read_compiled,
)
from perjoule.estimate.own.verb import Request, estimate_verb
from perjoule.measure.machine import MachineProfile
from perjoule.measure.machine_load import MachineLoad
from perjoule.train.console import Console
from perjoule.train.run import train

METERED = ("energy={sampler: thread, meters: cpu_time, rate_hz: 20}", "backend.threads=1")
TWO = {
    name: (
        *("model.kind=transformer", f"model.dim={dim}", "model.num_layers=1", "backend.precision=float32"),
        *("data.kind=recall", "data.seq_len=63", "data.num_pairs=4", "data.num_keys=32", "data.num_values=32"),
        *METERED,
    )
    for name, dim in (("small", 32), ("large", 96))
}


def train_silently(config: Any, *, recipe: str) -> Any:
    return train(config, recipe=recipe, console=Console(silent=True))


TRAINER = Trainer(perjoule.load, train_silently)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Whatever else this machine does, no line speaks of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MachineLoad, "facts", lambda self: {"others": 0.0, "steal": 0.0, "seconds": 1.0})
        yield


def test_a_calibration_on_a_busy_machine_says_so_then_and_whenever_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    monkeypatch.setattr(MachineLoad, "facts", lambda self: {"others": 0.6, "steal": 0.0, "seconds": 1.0})
    profile = MachineProfile(tmp_path / "profile")
    *_, last = calibrate(TRAINER, profile, seconds=0.1, rounds=1, which=TWO)
    assert last.startswith("the machine was busy: other programs used 60 % of the cores; ")
    lines = ask(MachineProfile(tmp_path / "profile"), overrides=recipe(tiny))
    assert any(line.startswith("when it was calibrated the machine was busy: other programs") for line in lines)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineProfile]:
    profile = MachineProfile(tmp_path_factory.mktemp("profile"))
    lines = list(calibrate(TRAINER, profile, seconds=0.2, rounds=1, which=TWO))
    assert [line.split(":")[0] for line in lines] == ["1/2 small", "2/2 large"]
    yield profile


def ask(profile: MachineProfile, **request: Any) -> list[str]:
    return list(estimate_verb(Request(**request), TRAINER, profile))


def recipe(tiny: Tiny, *overrides: str) -> Sequence[str]:
    return [
        *tiny.arguments()[:2],
        "data={kind: recall, seq_len: 63, num_pairs: 4, num_keys: 16, num_values: 16}",
        "batch.size=4",
        "stop.steps=50",
        *overrides,
    ]


def test_a_calibration_keeps_what_it_measured(profile: MachineProfile) -> None:
    known = read_calibration(MachineProfile(profile.path.parent))
    assert known is not None
    assert [one.name for one in known.samples] == ["small", "large"]
    for one in known.samples:
        assert one.step_s > 0
        assert one.cpu_s > 0
        assert one.watts is not None
        assert one.meters == "modelled: cpu"
    assert known.chosen["threads"] == 1
    assert profile.get(UNDER_WAY) is None


def test_a_killed_calibration_goes_on_where_it_was(tmp_path: Path) -> None:
    profile = MachineProfile(tmp_path)
    next(calibrate(TRAINER, profile, seconds=0.1, rounds=1, which=TWO))  # and no more: the process is gone
    again = MachineProfile(tmp_path)
    assert read_calibration(again) is None
    assert [line.split(":")[0] for line in calibrate(TRAINER, again, seconds=0.1, rounds=1, which=TWO)] == ["2/2 large"]
    assert read_calibration(again) is not None


def test_a_damaged_calibration_counts_as_none(tmp_path: Path) -> None:
    profile = MachineProfile(tmp_path)
    damages: list[dict[str, Any]] = [{"samples": [{"name": "x"}], "chosen": {}}, {"samples": []}, {"chosen": {}}]
    for damage in damages:
        profile.put(KEPT, damage)
        assert read_calibration(profile) is None


def test_the_calibration_set_has_every_architecture_and_precision() -> None:
    found = configurations()
    assert {name.split()[0] for name in found} == {"transformer", "retnet", "longnet", "ebt"}
    assert {name.rpartition(" ")[2] for name in found} == {"float32", "bf16-autocast"}
    for overrides in found.values():
        assert perjoule.load(None, *overrides)
    assert all(name.endswith("float32") for name in configurations(("float32",)))


def test_a_recipe_is_estimated_with_alternatives_and_a_budget(profile: MachineProfile, tiny: Tiny) -> None:
    overrides = recipe(tiny, "carbon={location: DEU, price_per_kwh: 0.3, currency: EUR}")
    lines = ask(profile, overrides=overrides, alternatives=True, budget="1kJ")
    assert lines[0].startswith("the default recipe on this machine:")
    rows = {line[2:14].strip() for line in lines if line.startswith("  ")}
    assert {"steps", "step", "time", "energy", "carbon", "cost", "peak memory"} <= rows
    assert any("calibrated on 2 configurations" in line for line in lines)
    assert any("batch.size=8 " in line and "energy" in line for line in lines)
    assert any(line.startswith("1 kJ would train any one of these") for line in lines)
    assert sum(" tokens a weight" in line for line in lines) >= 3


def test_a_device_by_its_name_is_labelled_as_a_data_sheet(profile: MachineProfile, tiny: Tiny) -> None:
    lines = ask(profile, overrides=recipe(tiny), device="NVIDIA GeForce RTX 3090")
    assert lines[0].startswith("the default recipe on RTX 3090 (data sheet):")
    assert any("scaled from its data sheet" in line for line in lines)


def test_without_a_calibration_the_verb_says_how_to_make_one(tmp_path: Path, tiny: Tiny) -> None:
    lines = ask(MachineProfile(tmp_path), overrides=recipe(tiny))
    assert any("not calibrated: run perjoule estimate --calibrate" in line for line in lines)


def test_calibrate_measures_before_it_answers(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, profile: MachineProfile
) -> None:
    def calibrate_quickly(trainer: Trainer, into: MachineProfile) -> Iterator[str]:
        yield "measured"
        into.put(KEPT, profile.get(KEPT))

    monkeypatch.setattr(verb, "calibrate", calibrate_quickly)
    lines = ask(MachineProfile(tmp_path), overrides=recipe(tiny), calibrate=True)
    assert lines[0] == "measured"
    assert any("calibrated on 2 configurations" in line for line in lines)


def test_what_compiling_gains_is_measured_when_the_recipe_is_compiled(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, profile: MachineProfile
) -> None:
    """The runs themselves are replaced: compiling takes a minute here."""
    own = MachineProfile(tmp_path)
    own.put(KEPT, profile.get(KEPT))
    with pytest.raises(DataError, match="compiling is compared with calibrated configurations: calibrate them first"):
        list(calibrate_compiled(TRAINER, MachineProfile(tmp_path / "other"), which=TWO))
    compiled = recipe(tiny, "backend.compile=true")
    assert any("prior: language models on two cores" in line for line in ask(own, overrides=compiled))
    known = read_calibration(own)
    assert known is not None
    halved = {one.name: replace(one, step_s=one.step_s / 2) for one in known.samples}
    seen: list[Sequence[str]] = []

    def measure(trainer: Trainer, name: str, overrides: Sequence[str], seconds: float) -> tuple[Any, dict[str, Any]]:
        seen.append(overrides)
        return halved[name], {}

    monkeypatch.setattr(calibration, "measure", measure)
    assert all("0.50 of the time" in line for line in calibrate_compiled(TRAINER, own, which=TWO))
    assert all(one[-1] == "backend.compile=true" for one in seen)
    factor = read_compiled(own)
    assert factor is not None
    assert factor.mean == pytest.approx(0.5)
    assert 0.25 < factor.low < 0.5 < factor.high < 1
    assert any("0.50 (" in line and "measured on 2" in line for line in ask(own, overrides=compiled))


def test_a_calibration_that_takes_too_long_makes_no_further_round(tmp_path: Path) -> None:
    profile = MachineProfile(tmp_path)
    lines = list(calibrate(TRAINER, profile, seconds=0.1, rounds=2, which=TWO, most_s=0))
    assert lines[-1] == "this took longer than 0 s: the rest of round 2 is left out"
    assert len(lines) == 3
    assert read_calibration(profile) is not None


def test_the_rest_of_a_run_is_estimated_from_its_folder(profile: MachineProfile, tiny: Tiny) -> None:
    path = run_of(tiny.train("stop.steps=30", "energy={sampler: thread, meters: cpu_time}"))
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"finished"', '"stopped"'))
    (path / "resolved.json").write_text((path / "resolved.json").read_text().replace('"value": 30', '"value": 90'))
    lines = ask(profile, target=path)
    assert lines[0].endswith("stopped after step 30")
    assert lines[1].split() == ["steps", "left", "60", "stop.steps"]
    assert any(line.startswith("  time left") for line in lines)
    assert any(line.startswith("  energy left") for line in lines)


def test_what_does_not_fit_together_is_refused(profile: MachineProfile, tiny: Tiny, tmp_path: Path) -> None:
    path = run_of(tiny.train("stop.steps=6"))
    with pytest.raises(ConfigError, match=r"is a run folder; these options need a recipe: key=value, --budget"):
        ask(profile, target=path, overrides=("batch.size=2",), budget="1kJ")
    with pytest.raises(ConfigError, match=r"is neither a recipe \(a YAML file\) nor a run folder"):
        ask(profile, target=tmp_path)
    with pytest.raises(ConfigError, match="--budget must be an energy such as 100kJ"):
        ask(profile, budget="5 cows")
    with pytest.raises(ConfigError, match="no data sheet of the device 'XT 9'"):
        ask(profile, device="XT 9")


def test_a_signal_that_stops_a_run_of_the_calibration_stops_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def interrupted(config: Any, *, recipe: str) -> Any:
        begun.append(recipe)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError  # pragma: no cover -- the signal is not survived

    def stopped(config: Any, *, recipe: str) -> Any:
        begun.append(recipe)
        return replace(train_silently(config, recipe=recipe), signal=int(signal.SIGINT))

    for train_one in (interrupted, stopped):
        with pytest.raises(KeyboardInterrupt):
            list(
                calibrate(Trainer(perjoule.load, train_one), MachineProfile(tmp_path), seconds=0.1, rounds=1, which=TWO)
            )
    assert len(begun) == 2
