import subprocess
import sys
from pathlib import Path


def test_every_function_keeps_its_named_axes() -> None:
    program = Path(__file__).with_name("named_axes.py")
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "named axes hold\n"
