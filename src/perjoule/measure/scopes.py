"""Which part of a machine lies inside which, so that no joule is added up twice.

::

    node ─┬─ psys ───┬─ package ── process        module: a GPU and its processor on one board (GH200), as one figure
          ├─ module ─┤                            process: the run's share of the processor, modelled
          │          └─ dram ───── ram            board: a rail of which nobody says what hangs on it
          └─ gpu (inside the module of the same device) ── mig
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from perjoule.measure.contract import Form, Sensor

_PROCESSOR = frozenset({"package", "dram", "process", "ram"})
_INSIDE: Mapping[str, frozenset[str]] = {
    "node": _PROCESSOR | {"psys", "module", "gpu", "mig"},
    "psys": _PROCESSOR,
    "module": _PROCESSOR | {"gpu", "mig"},
    "package": frozenset({"process"}),
    "dram": frozenset({"ram"}),
    "gpu": frozenset({"mig"}),
}
_OF_ONE_DEVICE = frozenset({"gpu", "mig"})
"""These lie only in what belongs to the same device, or in the whole node."""
BOARD = "board"


def outermost(sensors: Iterable[Sensor]) -> tuple[Sensor, ...]:
    """Return the sensors of one node whose energies may be added up, in the given order.

    Left out are levels, second meters of a domain (a counter is kept rather than a power sensor), and domains inside
    another one. A modelled figure does not stand in for measured ones: where it holds a measured part, it is left out
    itself. A board's rail counts only if nothing else is metered.

    Args:
        sensors: of meters that gave readings.
    """
    best: dict[str, Sensor] = {}
    for sensor in sensors:
        if sensor.form != Form.LEVEL and (
            sensor.domain not in best or _preference(sensor) < _preference(best[sensor.domain])
        ):
            best[sensor.domain] = sensor
    kept = [sensor for sensor in best.values() if sensor.scope != BOARD] or list(best.values())
    hidden = set()
    for outer in kept:
        for inner in kept:
            if _holds(outer, inner):
                hidden.add((outer if outer.modelled and not inner.modelled else inner).domain)
    return tuple(sensor for sensor in kept if sensor.domain not in hidden)


def _preference(sensor: Sensor) -> tuple[bool, bool, float]:
    """Return what makes one meter of a domain better than another; less is better."""
    window_s = float("inf") if sensor.window_s is None else sensor.window_s
    return sensor.modelled, sensor.form != Form.COUNTER, window_s


def _holds(outer: Sensor, inner: Sensor) -> bool:
    """Return whether the energy of ``inner`` is part of that of ``outer``."""
    if inner.scope not in _INSIDE.get(outer.scope, ()):
        return False
    return outer.scope == "node" or inner.scope not in _OF_ONE_DEVICE or _device(outer) == _device(inner)


def _device(sensor: Sensor) -> str:
    return sensor.device or sensor.domain.partition("-")[2]
