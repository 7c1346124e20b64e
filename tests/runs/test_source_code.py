"""The commit that a run was made with."""

import subprocess
from pathlib import Path

import pytest

from perjoule.runs.source_code import source_code


def test_the_commit_of_the_working_folder_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert "no git repository" in source_code(tmp_path)["unavailable"]
    (tmp_path / "model.py").write_text("1\n", encoding="utf-8")
    git("add", "model.py")
    git("commit", "-qm", "first")
    (tmp_path / "inside").mkdir()
    assert source_code(tmp_path / "inside") == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "model.py").write_text("2\n", encoding="utf-8")
    assert source_code(tmp_path)["changed"] is True


def test_without_git_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_code(tmp_path) == {"unavailable": "git is not installed"}
