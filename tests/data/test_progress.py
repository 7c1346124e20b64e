"""A person sees how far a long step is, how fast it goes and how long it takes."""

import sys

import pytest

from perjoule.data.engine import Amount
from perjoule.data.progress import Progress


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


def test_progress_says_how_far_how_fast_and_how_long(clock: list[float]) -> None:
    said: list[str] = []
    with Progress(1000, 200, said.append, lambda: clock[0]) as progress:
        clock[0] = 1.0
        progress.add(Amount(documents=3, text_bytes=5000, tokens=1000))
        assert said == [], "not yet"
        clock[0] = 10.0
        progress.add(Amount(documents=1, text_bytes=5000, tokens=1000, unit_bytes=200))
        assert said == [" 40%  4 documents  1 kB/s  200 tok/s  30 s left"]
    assert said[1:] == ["4 documents in 10 s: 1 kB/s  200 tok/s"]


def test_progress_is_a_bar_on_a_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said: list[str] = []
    with Progress(100, 0, said.append, lambda: clock[0]) as progress:
        clock[0] = 1.0
        progress.add(Amount(unit_bytes=50))
    drawn = capsys.readouterr().err
    assert drawn.startswith("\r\x1b[K" + "━" * 12 + " ")
    assert " 50% " in drawn
    assert drawn.endswith("\r\x1b[K"), "and it is gone in the end"
    assert said == [], "nothing was done"
