"""What the doctor finds out about meters: refresh, cost of a reading, and why one cannot be read."""

import os
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar, Literal

import pytest

from perjoule.config import Config
from perjoule.core import registry
from perjoule.core.registry import Shelf
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.sensors import Refresh
from perjoule.measure.survey import MIN_READINGS, Finding, survey

HERE = Site((os.getpid(),))
CLOSED: list[str] = []


class Steady:
    """Shows a new value every 20 ms; a reading takes 0.2 ms."""

    def __init__(self, read: Callable[[], int | Unavailable] | None = None) -> None:
        self.sensor = Sensor("lamp", Form.POWER, "node", "a lamp", "µW", 0.02, window_s=0.02)
        self._read = read

    def read(self) -> int | Unavailable:
        if self._read is not None:
            return self._read()
        time.sleep(0.0002)
        return time.monotonic_ns() // 20_000_000

    def close(self) -> None:
        CLOSED.append(self.sensor.domain)


class LampConfig(Config):
    kind: Literal["lamp"] = "lamp"

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        assert site == HERE
        return Steady(), Unavailable("there is no second lamp", "buy one"), Steady(lambda: Unavailable("it went out"))


class PlacedConfig(Config):
    kind: Literal["placed"] = "placed"
    where: str

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        raise AssertionError("it was not told where")


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"lamp": f"{__name__}:LampConfig", "placed": f"{__name__}:PlacedConfig"}
    monkeypatch.setattr("perjoule.measure.survey.SHELF", Shelf("measure", entries))
    CLOSED.clear()


def test_every_quantity_of_the_shelf_is_read_or_says_why_not() -> None:
    kinds, found = zip(*survey(HERE, 0.6), strict=True)
    assert kinds == ("lamp", "lamp", "lamp", "placed")
    lamp, missing, failing, placed = found
    assert isinstance(lamp, Finding)
    assert lamp.num_readings >= MIN_READINGS
    assert 0.0002 <= lamp.read_s < 0.1
    assert isinstance(lamp.refresh, Refresh)
    assert lamp.refresh.num_changes > 5
    assert missing == Unavailable("there is no second lamp", "buy one")
    assert failing == Unavailable("it went out")
    assert placed == Unavailable("needs to be told where", "energy.meters=[{kind: placed, where: …}]")
    assert CLOSED == ["lamp", "lamp"], "also the one that could not be read"


class Wild:
    """A meter of another package that fails in ways of its own.

    Args:
        at: what fails.
    """

    def __init__(self, at: str) -> None:
        self._at = at
        self.sensor = Sensor("wild", Form.POWER, "node", "a test", "µW", 0.1)

    def read(self) -> int | Unavailable:
        if self._at == "read":
            raise RuntimeError("a reading\nfailed")
        return 1

    def close(self) -> None:
        raise OSError("it cannot be closed")


class WildConfig(Config):
    kind: Literal["wild"] = "wild"
    at: ClassVar[str] = "build"

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        if self.at == "build":
            raise ZeroDivisionError("no meter")
        return (Wild(self.at),)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("import", "measure kind 'wild' of another package (no_such_module:X) cannot be loaded"),
        ("build", "ZeroDivisionError: no meter"),
        ("read", "it cannot be read: RuntimeError: a reading failed"),
        ("close", ""),
    ],
)
def test_a_meter_that_fails_ends_nothing_but_its_own_lines(
    at: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WildConfig, "at", at)
    target = "no_such_module:X" if at == "import" else f"{__name__}:WildConfig"
    shelf = Shelf("measure", {"lamp": f"{__name__}:LampConfig"})
    points = EntryPoints([EntryPoint("wild", target, "perjoule.measure")])
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr("perjoule.measure.survey.SHELF", shelf)
    found = list(survey(HERE, 0.0))
    assert [kind for kind, _ in found] == ["lamp"] * 3 + ["wild"]
    last = found[-1][1]
    assert last.reason.startswith(reason) if isinstance(last, Unavailable) else at == "close"


def test_a_meter_is_read_often_enough_however_short_the_survey() -> None:
    _, lamp = next(survey(HERE, 0.0))
    assert isinstance(lamp, Finding)
    assert lamp.num_readings == MIN_READINGS
