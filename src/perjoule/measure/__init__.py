"""Measuring: the recorder of phases, the machine, and the shelf of meters. Never imports torch.

To add a meter: write ``measure/meters/<kind>.py`` with a docstring whose first line describes it and a ``Config`` with
``build(site) -> tuple[Meter | Unavailable, ...]``, and add its line below. See docs/add_a_meter.md.

The package can be called: ``with perjoule.measure("runs/mine"): …`` makes a
:class:`perjoule.measure.session.Measurement`.
"""

import sys
import types
from typing import Any

from perjoule.core.registry import Shelf

SHELF = Shelf(
    "measure",
    {
        "cpu_time": "perjoule.measure.meters.cpu_time:CpuTimeConfig",
        "hwmon": "perjoule.measure.meters.hwmon:HwmonConfig",
        "memory": "perjoule.measure.meters.memory:MemoryConfig",
        "nvidia": "perjoule.measure.meters.nvidia:NvidiaConfig",
        "ram": "perjoule.measure.meters.ram:RamConfig",
        "rapl": "perjoule.measure.meters.rapl:RaplConfig",
        "replay": "perjoule.measure.meters.replay:ReplayConfig",
        "zeus": "perjoule.measure.meters.zeus:ZeusConfig",
    },
)


class _Verb(types.ModuleType):
    """A module that is also the verb it is named after."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Measure what happens in a ``with`` block; see :class:`perjoule.measure.session.Measurement`."""
        from perjoule.measure.session import Measurement

        return Measurement(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
