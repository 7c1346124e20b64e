"""Measuring: the recorder of phases, the machine, and the shelf of meters. Never imports torch.

To add a meter: write ``measure/meters/<kind>.py`` with a docstring whose first line describes it and a ``Config`` with
``build() -> Meter | Unavailable``, and add its line below. See docs/add_a_meter.md.
"""

from perjoule.core.registry import Shelf

SHELF = Shelf("measure", {"memory": "perjoule.measure.meters.memory:MemoryConfig"})
