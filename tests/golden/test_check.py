"""Every golden file beside this is reproduced, and the command says so and fails where it must."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.golden import check, ebt

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.safetensors"))
DEFAULT = FOLDER / "ebt_s1_default.safetensors"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("small", [0, 1 << 14])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_file_is_reproduced(file: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.models.layers.twice.SMALL", small)  # both ways through it
    errors = check.compare(file)
    assert len(errors) > 3
    assert [item for item in errors if not item[1] <= check.LIMIT] == []


def test_every_gradient_of_a_file_is_compared() -> None:
    for file in FOLDER.glob("ebt_*.safetensors"):
        with safe_open(file, "pt") as tensors:
            given = {name for name in tensors.keys() if name.startswith("grad.")}
        compared = [name for name, _ in check.compare(file) if name.startswith("grad.")]
        fused = 3 * sum("qkv" in name or "gate_up" in name for name in compared)  # theirs are apart
        assert len(given) - fused <= len(compared) <= len(given)


def rewritten(path: Path, flags: dict[str, Any], changes: dict[str, torch.Tensor] | None = None) -> Path:
    """Write the default case once more, with other flags or tensors."""
    with safe_open(DEFAULT, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        hparams = {**eval(file.metadata()["hparams"]), **flags}
    save_file(tensors | (changes or {}), path, {"hparams": repr(hparams)})
    return path


def test_a_wrong_number_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = rewritten(tmp_path / "wrong.safetensors", {}, {"energies.step1": torch.full((2, 12), 1.5)})
    assert check.main([str(DEFAULT), str(wrong)]) == 1
    first, second = capsys.readouterr().out.split(str(wrong))
    assert "25 compared, 0 above 0.0001" in first
    assert "25 compared, 1 above 0.0001" in second
    assert second.splitlines()[1].endswith("  energies.step1")


def test_a_number_that_is_none_is_found(tmp_path: Path) -> None:
    wrong = rewritten(tmp_path / "nan.safetensors", {}, {"loss": torch.tensor([float("nan")])})
    assert check.compare(wrong)[0][0] == "loss"
    assert check.main([str(wrong)]) == 1


@pytest.mark.parametrize("flag", ["clamp_futures_grad", "langevin_dynamics_noise", "ebt_norm"])
def test_a_flag_that_is_not_implemented_is_named(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rewritten(tmp_path / "odd.safetensors", {flag: "other"})
    assert check.main([str(file)]) == 1
    assert f"cannot be compared: {flag}='other' is not implemented; accepted: " in capsys.readouterr().out
    assert ebt.UNSUPPORTED[flag] != "other"


def test_what_is_no_golden_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, text = tmp_path / "other.safetensors", tmp_path / "text.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    text.write_text("hello")
    assert check.main([str(other), str(text), str(tmp_path / "missing")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "not a golden file: it has none of energies.step0, energy.step0, logits.parallel, logits" in lines[0]
    assert "not a safetensors file" in lines[1]
    assert "No such file" in lines[2]


def test_command_works_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "check.py")]
    result = subprocess.run([*command, str(DEFAULT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "25 compared, 0 above" in result.stdout
    nothing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert nothing.returncode == 1
    assert "python tests/golden/check.py FILE" in nothing.stdout
