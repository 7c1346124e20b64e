"""A whole number in a file that the kernel keeps: the reader that RAPL and hwmon share."""

from __future__ import annotations

import os
from pathlib import Path

from perjoule.measure.contract import Sensor, Unavailable


class NumberFile:
    """Reads a number from a descriptor that is kept; one reading costs a system call, without opening the file anew.

    Args:
        sensor: what the number is; its unit is that of the file.
        path: the file.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, sensor: Sensor, path: Path) -> None:
        self.sensor = sensor
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int | Unavailable:
        """Return the number in the file now."""
        try:
            return int(os.pread(self._descriptor, 32, 0))
        except OSError as error:
            return Unavailable(f"{self.sensor.domain}: {error.strerror}")
        except ValueError:
            return Unavailable(f"{self.sensor.domain}: the kernel gave no number")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def number(path: Path) -> int | None:
    """Return the number in a file, None if there is no such file or no number in it."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def text(path: Path) -> str:
    """Return the words in a file, "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
