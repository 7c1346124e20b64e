"""Calibration: what is repeated and recorded, and that training goes on as if nothing had happened."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.system.tiny import Tiny, losses, resume, run_of
from torch import nn

import perjoule
import perjoule.models
from perjoule.config import Config
from perjoule.core.phases import TRAINING
from perjoule.measure.bursts import Burst, run_bursts
from perjoule.models.contract import Output
from perjoule.models.layers.loss import next_token_loss
from perjoule.runs.folder import event_path
from perjoule.runs.journal import BEGIN, read_journal
from perjoule.runs.phase_table import build_phase_table
from perjoule.train.metering import Metering
from perjoule.train.run import train

CAN_CALIBRATE = Metering.can_calibrate
CALIBRATED = ("energy={meters: cpu_time, sampler: thread, calibrate: true}",)
BURSTS = [
    "data",
    "transfer",
    "forward",
    "forward+backward",
    "optimizer",
    "data+transfer+forward+backward+optimizer",
]


class MovingConfig(Config):
    """A model whose every forward pass changes something: a random mask, a running mean, a hidden count."""

    kind: Literal["moving"] = "moving"

    def build(self, shape: Mapping[str, int]) -> "Moving":
        return Moving(shape["vocab_size"])


class Moving(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16)
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(16, vocab_size)
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("num_passes", torch.zeros(()), persistent=False)
        self.mean: torch.Tensor
        self.num_passes: torch.Tensor

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> Output:
        hidden = self.dropout(self.embedding(tensors["input_ids"]))
        if self.training:
            self.mean.lerp_(hidden.detach().mean((0, 1)), 0.1)
            self.num_passes += 1
        logits = self.output(hidden - self.mean) / (1 + self.num_passes / 100)
        return Output(next_token_loss(logits.flatten(0, 1), tensors["labels"].flatten()))


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(perjoule.models.SHELF.entries, "moving", f"{__name__}:MovingConfig")


@pytest.fixture(autouse=True)
def bursts(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Burst]]:
    """Shorten the bursts to 20 ms, and note which were run."""
    seen: list[Sequence[Burst]] = []

    def short(bursts: Sequence[Burst], recorder: Any, seconds: float, **how: Any) -> Any:
        seen.append(bursts)
        return run_bursts(bursts, recorder, 0.02, pause_s=0.0, **how)

    monkeypatch.setattr("perjoule.train.calibrate.run_bursts", short)
    monkeypatch.setattr(Metering, "can_calibrate", lambda self, ranks: True)  # these runs have no sensor
    return seen


def train_moving(tiny: Tiny, *overrides: str) -> Path:
    arguments = [argument for argument in tiny.arguments() if not argument.startswith("model.")]
    return run_of(train(perjoule.load(None, "model=moving", *arguments, "optimizer.lr=0.01", *overrides)))


@pytest.mark.parametrize(
    ("meters", "said"), [("cpu_time", "all energy here is modelled"), ("memory", "no meter can be read")]
)
def test_nothing_is_calibrated_where_no_sensor_would_show_it(
    meters: str, said: str, tiny: Tiny, bursts: list[Sequence[Burst]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Metering, "can_calibrate", CAN_CALIBRATE)
    train(perjoule.load(None, *tiny.arguments(), f"energy={{meters: {meters}, sampler: thread, calibrate: true}}"))
    assert bursts == [] and f"no calibration (energy.calibrate): {said}" in capsys.readouterr().out


def test_a_calibrated_run_has_the_losses_of_one_that_is_not(
    tiny: Tiny, moving: None, bursts: list[Sequence[Burst]]
) -> None:
    calibrated = losses(train_moving(tiny, *CALIBRATED))
    assert [burst.name for burst in bursts[0]] == BURSTS
    assert calibrated == losses(train_moving(tiny))
    assert len(set(calibrated)) == 5


@pytest.mark.parametrize(
    "overrides",
    [("batch.accumulation=2",), ("batch.workers=2",), ("backend.precision=bf16-autocast",), ("debug.rehearsal=true",)],
    ids=lambda overrides: overrides[0],
)
def test_it_is_so_however_a_step_is_taken(tiny: Tiny, moving: None, overrides: tuple[str, ...]) -> None:
    assert losses(train_moving(tiny, *overrides, *CALIBRATED)) == losses(train_moving(tiny, *overrides))


def test_every_segment_is_calibrated_and_goes_on_with_its_optimizer_state(
    tiny: Tiny, moving: None, bursts: list[Sequence[Burst]]
) -> None:
    # The hidden count is in no checkpoint, so both runs are resumed.
    runs = [train_moving(tiny, *overrides) for overrides in (CALIBRATED, ())]
    for run in runs:
        resume(run, "stop.steps=9")
    assert len(bursts) == 2
    assert losses(runs[0]) == losses(runs[1])


def test_the_journal_says_what_was_repeated(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tiny.train(*CALIBRATED, "batch.accumulation=2"))
    journal = read_journal(event_path(run, 0, 0))
    before = journal.records[journal.records["step"] == 0]
    begun = [journal.phases[record["phase"]] for record in before if record["kind"] == BEGIN]
    starts = [place for place, name in enumerate(begun) if name == "calibrate"]
    ends = [*starts[1:], len(begun)]
    inside = [begun[start + 1 : end] for start, end in zip(starts, ends, strict=True)]
    data, transfer, forward, backward, optimizer = (f"calibrate/{phase}" for phase in TRAINING)
    step = [data, *[transfer, forward, backward] * 2, optimizer]
    repeated = [[data], [transfer], [forward], [forward, backward], [optimizer], step]
    for names, unit in zip(inside, repeated, strict=True):
        assert names == unit * (len(names) // len(unit))
    table = build_phase_table(journal)
    assert table.num_unclosed == 0
    assert table.steps.tolist() == [1, 2, 3, 4, 5]
    assert not any(name.startswith("calibrate") for name in table.wall_ns)
    shown = capsys.readouterr().out
    assert f"calibration: {', '.join(BURSTS)}, 3 s each, about 21 s; the state is restored afterwards\n" in shown
    assert re.search(r"^calibration: repeated data \d+ times, transfer \d+ times, ", shown, re.MULTILINE)
    assert f"{len(inside[-1]) // len(step)} times\n" in shown


def test_the_learning_rate_is_zero_meanwhile(tiny: Tiny, bursts: list[Sequence[Burst]]) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        tiny.train(*CALIBRATED)
    assert set(rates[:-5]) == {0.0}
    assert all(rate > 0 for rate in rates[-5:])


def test_the_state_is_put_back_after_a_burst_that_failed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[str] = []

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("perjoule.train.calibrate.run_bursts", fail)
    monkeypatch.setattr("perjoule.train.snapshot.Snapshot.restore", lambda snapshot: restored.append("restored"))
    with pytest.raises(KeyboardInterrupt):
        tiny.train(*CALIBRATED)
    assert restored == ["restored"]


def test_a_compiled_model_is_compiled_before_its_first_burst(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, bursts: list[Sequence[Burst]]
) -> None:
    calls: list[int] = []

    def compiled(model: nn.Module) -> Callable[..., Output]:
        def call(tensors: Mapping[str, torch.Tensor]) -> Output:
            calls.append(len(bursts))
            output: Output = model(tensors)
            return output

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    run = run_of(tiny.train(*CALIBRATED, "backend.compile=true"))
    assert calls[0] == 0, "one step before the bursts"
    assert calls.count(1) > 2 + 5
    assert losses(run) == tiny.losses_of()


def test_bursts_need_meters_and_a_journal(tiny: Tiny) -> None:
    refused = "energy.calibrate needs energy.meters, an energy.sampler that is not off, and record.enabled=true"
    attempt = partial(tiny.train, "energy.calibrate=true")
    with pytest.raises(perjoule.core.errors.ConfigError, match=refused):
        attempt()
    with pytest.raises(perjoule.core.errors.ConfigError, match=refused):
        attempt("energy.sampler=thread", "record.enabled=false")
    with pytest.raises(perjoule.core.errors.ConfigError, match=refused):
        attempt("energy.sampler=thread", "energy.meters=[]")
