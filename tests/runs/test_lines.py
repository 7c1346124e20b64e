"""Files to which several processes append, and what a kill leaves of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.runs.cross_check import CROSS_CHECK, CrossCheck, add_cross_check, read_cross_checks
from perjoule.runs.exports import write_csv
from perjoule.runs.lines import append_line, read_lines

APPEND = """
import sys
from pathlib import Path
from perjoule.runs.lines import append_line
for number in range(200):
    append_line(Path(sys.argv[1]), {"who": sys.argv[2], "number": number})
"""


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    for number in range(3):
        append_line(tmp_path / "x.jsonl", {"number": number})
    assert [line["number"] for line in read_lines(tmp_path / "x.jsonl")] == [0, 1, 2]


def test_two_processes_may_append_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), who]) for who in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = list(read_lines(path))
    assert len(lines) == 400
    assert [line["number"] for line in lines if line["who"] == "b"] == list(range(200))


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "x.jsonl")) == []


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_cut_off_anywhere_loses_only_itself(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    for number in range(2):
        append_line(path, {"number": number})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - min(cut, len(whole) // 2)])
    append_line(path, {"number": 9})
    numbers = [line["number"] for line in read_lines(path)]
    assert numbers in ([0, 9], [0, 1, 9]), "without its newline alone, the second line is whole"


def test_what_is_no_json_object_is_skipped_and_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('3\n[]\n\n{"a": 1}\nnull\n', encoding="utf-8")
    assert list(read_lines(path)) == [{"a": 1}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(path, {"a": float("nan")})


def test_a_full_or_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot write .*x\.jsonl: No such file"):
        append_line(tmp_path / "gone" / "x.jsonl", {})
    with pytest.raises(RunFolderError, match=r"cannot write /dev/full: No space left"):
        append_line(Path("/dev/full"), {"a": 1})


def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot read .*: Is a directory"):
        list(read_lines(tmp_path))


def test_a_cross_check_is_read_as_it_was_written_and_an_older_line_with_what_it_has(tmp_path: Path) -> None:
    check = CrossCheck(2, "node-1", {"duration": 1.5, "region": None}, ("RAM", "CPU(Constant)"))
    add_cross_check(tmp_path, check)
    append_line(tmp_path / CROSS_CHECK, {"segment": 3})
    assert read_cross_checks(tmp_path) == (check, CrossCheck(3, "", {}))


def test_a_table_has_empty_cells_for_none_and_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for rows in ([("x,y", 1.5)], [(None, 2)]):
        path = write_csv(tmp_path / "t.csv", ("a", "b"), rows)
    assert path.read_text(encoding="utf-8") == "a,b\n,2\n"
    assert [one.name for one in tmp_path.iterdir()] == ["t.csv"]
