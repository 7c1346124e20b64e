"""A user's TrainerStats in our loop: the toolkit's order, whatever the loop does besides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import ConfigError
from perjoule.core.phases import RECORDED
from perjoule.measure.bridges.trainer_stats import LOGGED, TIMED, HookedRecorder, NoOpStats, StatsBridge, find_hooks
from perjoule.measure.recorder import FencePolicy
from perjoule.runs.journal import JournalWriter, read_journal
from perjoule.runs.phase_table import build_phase_table

ALL = [f"{edge}_{what}" for what in TIMED for edge in ("start", "stop")] + list(LOGGED)
IN_STEP = "start_step start_forward stop_forward start_backward stop_backward start_optimizer_step stop_optimizer_step"


class Spy:
    """Has the hooks it is given, and writes down which were called with what."""

    def __init__(self, names: list[str]) -> None:
        self.calls: list[str] = []
        for name in names:
            setattr(self, name, self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(*arguments: object) -> None:
            self.calls.append(" ".join([name, *map(str, arguments)]))

        return hook


class Loop:
    """Does what :mod:`perjoule.train.loop` does, without a model."""

    def __init__(self, stats: object, journal: JournalWriter | None = None, late: bool = False) -> None:
        self.bridge = StatsBridge(stats)
        self.recorder = HookedRecorder(self.bridge, journal, lambda: None, FencePolicy.NONE)
        self.phase = {name: self.recorder.phase(name) for name in RECORDED}
        self.late, self.pending = late, list[float]()

    def step(self, number: int, micro_batches: int = 1, save: bool = False, evaluate: bool = False) -> None:
        self.recorder.step = number
        with self.phase["step"]:
            with self.phase["data"]:
                pass
            for _ in range(micro_batches):
                for name in ("transfer", "forward", "backward"):
                    with self.phase[name]:
                        pass
            with self.phase["optimizer"]:
                self.pending.append(number / 2)
            if not self.late or len(self.pending) > 1:
                self.bridge.take_loss(self.pending.pop(0))
            if evaluate:
                with self.phase["evaluate"]:
                    pass
            if save:
                with self.phase["checkpoint"]:
                    pass

    def train(self, steps: int, **options: Any) -> None:
        self.bridge.begin()
        for number in range(1, steps + 1):
            self.step(number, **options)
        for loss in self.pending:
            self.bridge.take_loss(loss)
        self.bridge.end()
        self.bridge.report()


def test_hooks_are_called_in_the_toolkits_order() -> None:
    spy = Spy(ALL)
    Loop(spy).train(2)
    step = [*IN_STEP.split(), "stop_step"]
    first, second = [*step, "log_loss 0.5", "log_step"], [*step, "log_loss 1.0", "log_step"]
    assert spy.calls == ["start_train", *first, *second, "stop_train", "log_stats"]


def test_a_checkpoint_lies_between_the_step_and_its_log_and_an_evaluation_nowhere() -> None:
    spy = Spy(ALL)
    Loop(spy).train(1, save=True, evaluate=True)
    behind = spy.calls[spy.calls.index("stop_step") :]
    assert behind[:4] == ["stop_step", "start_save_checkpoint", "stop_save_checkpoint", "log_loss 0.5"]
    assert not [call for call in spy.calls if "eval" in call]


def test_a_loss_that_comes_late_keeps_its_pair_and_none_is_lost() -> None:
    spy = Spy(ALL)
    Loop(spy, late=True).train(3)
    assert [call for call in spy.calls if call.startswith("log")] == [
        *("log_loss 0.5", "log_step", "log_loss 1.0", "log_step", "log_loss 1.5", "log_step"),
        "log_stats",
    ]
    assert spy.calls.index("log_loss 0.5") > [row for row, call in enumerate(spy.calls) if call == "stop_step"][1]
    assert spy.calls[-4:] == ["log_loss 1.5", "log_step", "stop_train", "log_stats"]


def test_micro_batches_repeat_forward_and_backward_within_one_step() -> None:
    spy = Spy(ALL)
    Loop(spy).train(1, micro_batches=3)
    assert spy.calls.count("start_forward") == spy.calls.count("stop_backward") == 3
    assert spy.calls.count("start_step") == spy.calls.count("start_optimizer_step") == 1


def test_the_other_spelling_of_optimizer_is_the_same_hook() -> None:
    spy = Spy([name.replace("optimizer", "optimiser") for name in ALL])
    Loop(spy).train(1)
    assert spy.calls.count("start_optimiser_step") == spy.calls.count("stop_optimiser_step") == 1


def test_hooks_of_data_loading_are_called_if_a_variant_has_them() -> None:
    spy = Spy([*ALL, "start_dataloading", "stop_dataloading"])
    Loop(spy).train(1)
    assert spy.calls[:4] == ["start_train", "start_dataloading", "stop_dataloading", "start_step"]


def test_what_is_no_trainer_stats_is_refused_with_every_missing_hook() -> None:
    class Half(Spy):
        pass

    with pytest.raises(ConfigError, match="Half is not a TrainerStats: it lacks stop_train, log_stats"):
        find_hooks(Half([name for name in ALL if name not in {"stop_train", "log_stats"}]))


def test_no_op_stats_have_every_hook() -> None:
    assert set(find_hooks(NoOpStats())) == set(ALL)
    Loop(NoOpStats()).train(2, save=True)


def test_the_loss_is_handed_over_as_the_class_expects_it() -> None:
    spy = Spy(ALL)
    bridge = StatsBridge(spy, as_loss=lambda loss: [loss])
    bridge.begin()
    bridge.take_loss(0.5)
    bridge.end()
    bridge.end()
    assert spy.calls == ["start_train", "log_loss [0.5]", "log_step", "stop_train"], "ended twice, stopped once"


def test_training_that_never_began_is_neither_stopped_nor_reported() -> None:
    spy = Spy(ALL)
    bridge = StatsBridge(spy)
    bridge.end()
    bridge.report()
    assert spy.calls == []


def test_a_phase_that_fails_calls_no_hook_behind_it() -> None:
    spy = Spy(ALL)
    loop = Loop(spy)
    with pytest.raises(ZeroDivisionError), loop.phase["forward"]:
        raise ZeroDivisionError
    assert spy.calls == ["start_forward"]


def test_the_journal_is_what_it_is_without_hooks_and_their_time_is_in_no_phase(tmp_path: Path) -> None:
    class Slow(NoOpStats):
        def start_forward(self) -> None:
            clock_ns[0] += 7_000_000

        def stop_forward(self) -> None:
            clock_ns[0] += 7_000_000

    clock_ns = [1_000_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perjoule.runs.journal.time.monotonic_ns", lambda: clock_ns[0])
        journal = JournalWriter(tmp_path / "events.bin", RECORDED)
        loop = Loop(Slow(), journal)
        loop.train(2)
        loop.recorder.close()
    read = read_journal(tmp_path / "events.bin")
    table = build_phase_table(read)
    assert table.steps.tolist() == [1, 2] and len(read.records) == 2 * 2 * 6
    assert table.wall_ns["forward"].tolist() == [0, 0] and table.wall_ns["step"].tolist() == [14_000_000] * 2


def test_phases_without_hooks_stay_the_recorders_own(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path / "events.bin", RECORDED)
    recorder = HookedRecorder(StatsBridge(NoOpStats()), journal, lambda: None, FencePolicy.NONE)
    assert type(recorder.phase("transfer")).__name__ == "Phase"
    recorder.close()


def test_hooks_are_called_when_nothing_is_recorded() -> None:
    spy = Spy(ALL)
    Loop(spy, journal=None).train(1)
    assert spy.calls[1] == "start_step" and spy.calls[-1] == "log_stats"


@pytest.mark.parametrize("hook", ["start_train", "start_backward", "stop_step", "log_loss", "stop_train", "log_stats"])
def test_a_hook_that_raises_ends_the_training_with_a_line_that_names_it(hook: str) -> None:
    def fail(*_: object) -> None:
        raise ValueError("mine\nalone")

    broken = NoOpStats()
    setattr(broken, hook, fail)
    with pytest.raises(ConfigError, match=rf"^stats: NoOpStats\.{hook} failed: ValueError: mine alone \(test_"):
        Loop(broken).train(1)


def test_the_fence_is_waited_for_inside_of_the_hooks(tmp_path: Path) -> None:
    spy = Spy(ALL)
    journal = JournalWriter(tmp_path / "events.bin", RECORDED)
    bridge = StatsBridge(spy)
    recorder = HookedRecorder(bridge, journal, lambda: spy.calls.append("fence"), FencePolicy.EDGE)
    with recorder.phase("forward"):
        pass
    recorder.close()
    assert spy.calls == ["start_forward", "fence", "fence", "stop_forward"]
