"""Meters of somebody else, installed as a package of its own would be, with every bad habit that a meter can have."""

from pathlib import Path
from textwrap import dedent

import pytest

_MODULE = dedent(
    '''
    """A meter that behaves as badly as it is told to."""
    import time
    from typing import Literal
    from perjoule.config import Config
    from perjoule.measure.contract import Form, Sensor, Unavailable

    class WildConfig(Config):
        kind: Literal["wild"] = "wild"
        habit: Literal["good", "100 W", "raises", "returns text", "hangs", "no build", "is slow to build"] = "good"
        device: str = ""

        def build(self, site):
            if self.habit == "no build":
                raise RuntimeError("the driver\\nis upset")
            if self.habit == "is slow to build":
                time.sleep(60)
            return (Wild(self), Unavailable("there is only one", "buy another"))

    class Wild:
        def __init__(self, config):
            self.sensor = Sensor("wild", Form.COUNTER, "gpu", "made up", "µJ", 0.001, device=config.device)
            self.habit, self.num = config.habit, 0

        def read(self):
            self.num += 1
            if self.habit == "100 W":
                return time.monotonic_ns() // 10
            if self.num % 2 == 0:
                if self.habit == "raises":
                    raise ValueError("a bad day")
                if self.habit == "returns text":
                    return "12"
                if self.habit == "hangs":
                    time.sleep(60)
            return 1000 * self.num

        def close(self):
            raise OSError("closed already")
    '''
)


def install(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Put the package where this process and those that it starts find it."""
    folder.mkdir()
    (folder / "wild_meter.py").write_text(_MODULE)
    facts = folder / "wild_meter-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: wild-meter\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[perjoule.measure]\nwild = wild_meter:WildConfig\ngone = no_such_module:GoneConfig\n"
    )
    patch.syspath_prepend(folder)
