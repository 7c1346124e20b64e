"""A user's ``TrainerStats`` is called by our loop, in the toolkit's order, and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.system.tiny import Tiny, losses, run_of

from perjoule.core.errors import ConfigError
from perjoule.measure.bridges.trainer_stats import NoOpStats
from perjoule.runs.folder import event_path, read_manifest
from perjoule.runs.journal import read_journal
from perjoule.train.backend import Backend

OFFERED: dict[str, Any] = {}


class Taking(NoOpStats):
    """Takes whatever is offered."""

    def __init__(self, **offered: Any) -> None:
        OFFERED.update(offered)


class Counting(NoOpStats):
    """Counts the steps and the losses."""

    steps = 0
    losses: tuple[float, ...] = ()
    over = False

    def log_step(self) -> None:
        Counting.steps += 1

    def log_loss(self, loss: Any) -> None:
        assert isinstance(loss, torch.Tensor)
        Counting.losses += (loss.item(),)

    def log_stats(self) -> None:
        Counting.over = True


class Failing(NoOpStats):
    """Fails in the middle of a step, and again when it is stopped."""

    stopped = 0

    def stop_backward(self) -> None:
        raise ValueError("mine")

    def stop_train(self) -> None:
        Failing.stopped += 1
        raise ValueError("mine too")


def construct_trainer_stats(conf: Any, **kwargs: Any) -> NoOpStats:
    OFFERED.update(conf=conf, **kwargs)
    return NoOpStats()


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    Counting.steps, Counting.losses, Counting.over = 0, (), False
    OFFERED.clear()


def test_stats_of_the_user_see_every_step_and_loss_of_our_loop(tiny: Tiny) -> None:
    run = run_of(tiny.train(f"stats={__name__}:Counting"))
    assert (Counting.steps, Counting.over) == (5, True)
    assert list(Counting.losses) == pytest.approx(losses(run), rel=1e-6)
    assert losses(run) == tiny.losses_of()


def test_the_loop_offers_what_stats_may_ask_for(tiny: Tiny) -> None:
    run = run_of(tiny.train(f"stats={__name__}:Taking"))
    assert OFFERED.keys() == {
        *("device", "num_train_steps", "run", "output_dir", "fence", "conf", "say", "run_num", "project_name")
    }
    assert (OFFERED["num_train_steps"], OFFERED["run"]) == (5, run)
    assert OFFERED["output_dir"].is_dir()


def test_stats_run_also_where_nothing_is_recorded_or_a_device_has_a_clock_of_its_own(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.train(f"stats={__name__}:Counting", "record.enabled=false")
    assert Counting.steps == 5
    from tests.train.test_record import HostEvent

    monkeypatch.setattr(Backend, "timing_event", HostEvent)
    run = run_of(tiny.train(f"stats={__name__}:Counting"))
    device = event_path(run, 0, 0).with_name("0000-rank0-device.bin")
    assert len(read_journal(device).records) == len(read_journal(event_path(run, 0, 0)).records)


def test_stats_are_stopped_once_however_training_ends(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"stats: Failing\.stop_backward failed: ValueError: mine"):
        tiny.train(f"stats={__name__}:Failing", "name=failed")
    assert Failing.stopped == 1
    manifest = read_manifest(tiny.runs / "failed")
    assert manifest["status"] == "failed" and "Failing.stop_backward" in manifest["reason"]


def test_the_loop_hands_the_toolkits_constructor_what_its_own_trainer_does(tiny: Tiny) -> None:
    tiny.train(f"stats={__name__}:construct_trainer_stats", "stats_options.run_num=3", "name=course")
    conf = OFFERED["conf"]
    assert OFFERED.keys() == {"conf", "device", "num_train_steps"} and OFFERED["device"] == torch.device("cpu")
    own = getattr(conf.trainer_stats_configs, construct_trainer_stats.__module__.rpartition(".")[2])
    assert (own.run_num, Path(own.output_dir)) == (3, tiny.runs / "course" / "stats")
    assert conf.batch_size > 0 and conf.learning_rate > 0 and conf.model == "transformer"


def test_simple_stats_print_a_line_for_each_step(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.train("stats=simple")
    shown = capsys.readouterr().out
    assert shown.count(" -- forward ") >= 5


def test_stats_that_are_none_are_refused_before_the_first_step(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="stats: 'smiple' names no stats: did you mean 'simple'"):
        tiny.train("stats=smiple")
    with pytest.raises(ConfigError, match="has no Countng: did you mean 'Counting'"):
        tiny.train(f"stats={__name__}:Countng")
