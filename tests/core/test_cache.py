"""Where things are kept that can be made again."""

from pathlib import Path

import pytest

from perjoule.core.cache import cache_folder


def test_cache_folder_follows_the_configuration_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PERJOULE_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(Path("~/configured")) == tmp_path / "configured"
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PERJOULE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "perjoule"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "perjoule"
