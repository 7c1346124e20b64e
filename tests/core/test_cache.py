"""Where things are kept that can be made again."""

from pathlib import Path

import pytest

from perjoule.core.cache import cache_folder, expand_home
from perjoule.core.errors import ConfigError


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


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERJOULE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="PERJOULE_CACHE"):
        cache_folder()
    with pytest.raises(ConfigError, match="~nobody-of-that-name/x"):
        expand_home(Path("~nobody-of-that-name/x"))
