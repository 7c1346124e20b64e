"""The intensities that were fetched while a run trained."""

from pathlib import Path

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.runs.carbon_series import CARBON, append_intensity, read_carbon_series


def test_what_was_appended_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    append_intensity(tmp_path, {"t_wall_s": 20.0, "g_per_kwh": 300, "zone": "DE", "kind": "direct", "estimated": True})
    append_intensity(tmp_path, {"t_wall_s": 10.0, "g_per_kwh": 200, "zone": "DE", "kind": "direct"})
    append_intensity(tmp_path, {"t_wall_s": 30.0, "unavailable": "timed out"})
    series = read_carbon_series(tmp_path)
    assert series.t_wall_s.tolist() == [10, 20] and series.g_per_kwh.tolist() == [200, 300]
    assert (series.zone, series.kind, series.num_estimated, series.failures) == ("DE", "direct", 1, ("timed out",))


def test_a_run_that_fetched_nothing_has_an_empty_series(tmp_path: Path) -> None:
    series = read_carbon_series(tmp_path)
    assert len(series.t_wall_s) == 0 and series.failures == ()


def test_a_line_that_a_kill_cut_off_loses_only_itself(tmp_path: Path) -> None:
    (tmp_path / CARBON).write_bytes(b'{"t_wall_s": 1, "g_per_kwh": 100}\n{"t_wall_s": 2, "g_p')
    append_intensity(tmp_path, {"t_wall_s": 3.0, "g_per_kwh": 300})
    assert read_carbon_series(tmp_path).g_per_kwh.tolist() == [100, 300]


def test_lines_of_another_kind_are_skipped(tmp_path: Path) -> None:
    (tmp_path / CARBON).write_text('[1]\n7\n{"t_wall_s": null, "g_per_kwh": 1}\n\n{"t_wall_s": 1, "g_per_kwh": 5}\n')
    assert read_carbon_series(tmp_path).g_per_kwh.tolist() == [5]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot write .*carbon\.jsonl: No such file"):
        append_intensity(tmp_path / "gone", {})


def test_a_series_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / CARBON).mkdir()
    with pytest.raises(RunFolderError, match=r"cannot read .*carbon\.jsonl: Is a directory"):
        read_carbon_series(tmp_path)
