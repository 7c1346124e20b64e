"""Output that cannot be shown or written ends nothing."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perjoule.core.streams import Output, OutputLost, drawing, survivable


class Broken(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [Broken(), None, io.TextIOWrapper(io.BytesIO())], ids=["broken", "none", "closed"])
def test_what_cannot_be_written_is_dropped(stream: io.TextIOBase | None) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.close()
    out = Output(stream)  # type: ignore[arg-type]
    print("a line", file=out, flush=True)
    print("another", file=drawing(out), flush=True)
    assert (out.lost is None) == (stream is None)
    assert not out.isatty()


def test_output_that_is_all_that_is_done_is_required() -> None:
    with pytest.raises(OutputLost, match="Broken pipe"):
        print("a line", file=Output(Broken(), required=True))


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "\\xb5 \\u2501"), ("latin-1", "µ \\u2501"), ("utf-8", "µ ━")]
)
def test_what_a_terminal_does_not_know_is_shown_as_its_escape(encoding: str, shown: str) -> None:
    below = io.BytesIO()
    out = Output(io.TextIOWrapper(below, encoding=encoding))
    print("µ ━", file=out, flush=True)
    assert below.getvalue().decode(encoding) == f"{shown}\n"


def test_control_characters_are_shown_unless_they_are_ours() -> None:
    below = io.StringIO()
    out = Output(below)
    print("a\x1b[2Jb\x9b\r\tc\udce9\u202e", file=out)
    assert below.getvalue() == "a\\x1b[2Jb\\x9b\\r\tc\\udce9\\u202e\n"
    print("\x1b[2J", end="", file=drawing(out))
    assert below.getvalue().endswith("\n\x1b[2J")


def test_both_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with survivable() as out:
        assert sys.stdout is out
        print("a")
        print("b", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\n", "b\n")


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    script = f"""
import os
from perjoule.core.streams import survivable
with survivable():
    with open({str(tmp_path / "file")!r}, "w") as file:
        os._exit(file.fileno())
"""
    done = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-', script], check=False)
    assert done.returncode > 2


def test_python_says_nothing_at_its_end_about_a_reader_that_went_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "from perjoule.core.streams import *\nwith survivable() as out: print('x', flush=True)\nassert out.lost"
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
