"""What a person sees while a run goes on."""

import io
import re
from pathlib import Path

import pytest

from perjoule.train.console import Console
from perjoule.train.job import StepRecord


def record(step: int) -> StepRecord:
    return StepRecord(step, 4.5678, 1.0, 1e-3, samples=8, tokens=1000, useful=990)


class Terminal(io.StringIO):
    """Text that is drawn on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose last item is the time."""
    now = [100.0]
    monkeypatch.setattr("perjoule.train.console.time.monotonic", lambda: now[-1])
    return now


def test_plain_lines_come_every_five_seconds_with_rate_and_rest(seconds: list[float]) -> None:
    shown = io.StringIO()
    console = Console(stream=shown)
    console.begin()
    for step in range(1, 13):
        seconds.append(100.0 + step)
        console.step(record(step), fraction=step / 24, left=lambda: f", {24 - len(seconds) + 1} s left")
    assert shown.getvalue().splitlines() == [
        "step 1  loss 4.5678  1 ktok/s, 23 s left",
        "step 6  loss 4.5678  1 ktok/s, 18 s left",
        "step 11  loss 4.5678  1 ktok/s, 13 s left",
    ]


def test_what_is_left_is_asked_for_when_a_line_is_drawn_and_not_before(seconds: list[float]) -> None:
    asked: list[float] = []

    def left() -> str:
        asked.append(seconds[-1])
        return ""

    console = Console(stream=io.StringIO())
    for step in range(1, 13):
        seconds.append(100.0 + step)
        console.step(record(step), fraction=0.0, left=left)
    assert asked == [101.0, 106.0, 111.0]


def test_a_terminal_gets_a_bar_that_goes_away(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    console = Console(stream=shown)
    console.begin()
    seconds.append(101.0)
    console.step(record(1), fraction=0.5, left=lambda: ", 3 s left")
    console.line("step 1: validation loss 4.5 [not markup]")
    console.close()
    assert "3 s left" in shown.getvalue()
    assert "step 1: validation loss 4.5 [not markup]" in shown.getvalue()


def test_a_silent_console_prints_nothing_and_still_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(silent=True)
    console.log_to(tmp_path / "train.log")
    console.begin()
    console.line("a line")
    console.close()
    console.close()
    assert capsys.readouterr() == ("", "")
    line = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d a line\n", line)


def test_a_log_is_continued(tmp_path: Path) -> None:
    for text in ("first", "second"):
        console = Console(silent=True)
        console.log_to(tmp_path / "train.log")
        console.line(text)
        console.close()
    assert [line.split()[-1] for line in (tmp_path / "train.log").read_text().splitlines()] == ["first", "second"]


def test_a_log_that_cannot_be_written_is_given_up_with_one_line() -> None:
    shown = io.StringIO()
    console = Console(stream=shown)
    console.log_to(Path("/dev/full"))
    console.line("first")
    console.line("second")
    console.close()
    assert shown.getvalue().splitlines() == [
        "/dev/full: No space left on device; lines are no longer logged",
        "first",
        "second",
    ]


def test_a_step_is_shown_beside_the_last_one_and_its_bar_stays_at_80_columns(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    console = Console(stream=shown)
    console.begin(last_step=120)
    seconds.append(101.0)
    console.step(record(54), fraction=0.5, left=lambda: ", 12 min 05 s (11 min 50 s to 12 min 20 s) and 3.2 kJ left")
    console.close()
    drawn = [line for line in re.split(r"[\r\n]", shown.getvalue()) if "step 54/120" in line]
    assert drawn and all("━" in line for line in drawn), "the bar is still there"


def test_long_lines_are_broken_between_words_on_a_terminal_only() -> None:
    words = (
        "backend: precision float32, matmul highest, compile False, attention sdpa, allocator system, threads 1, more"
    )
    for stream, is_broken in ((Terminal(), True), (io.StringIO(), False)):
        Console(stream=stream).line(words)
        lines = stream.getvalue().splitlines()
        assert (len(lines) > 1) == is_broken
        assert max(map(len, lines)) <= 80 or not is_broken
        assert " ".join(line.strip() for line in lines) == words
