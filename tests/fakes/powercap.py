"""A powercap tree as Linux shows it for RAPL, with counters that grow by a known power.

The zones lie in ``<root>/intel-rapl/intel-rapl:0/intel-rapl:0:0`` as in the kernel's device tree, and are linked from
``<root>`` as in ``/sys/class/powercap``, so that readers of either find them. Use::

    tree = Powercap(root)
    package = tree.add("package-0", watts=40, max_uj=262_143_328_850)
    dram = tree.add("dram", watts=3, parent=package)
    tree.advance(1.5)                 # without waiting, or
    with tree.running():              # in real time, from a thread, or
        …
    python -m tests.fakes.powercap ROOT package-0=40 dram=3     # from a process, until its input ends
"""

import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 20


@dataclass
class Zone:
    """One zone.

    Args:
        name: what stands in its file ``name``.
        path: its folder in the device tree.
        watts: power that its counter grows by; may be changed at any time.
        max_uj: the counter goes from 0 to below this value.
        energy_uj: true energy since the tree was made; what the counter shows is this plus the offset, wrapped.
        offset_uj: value of the counter at first.
        descriptor: of its file ``energy_uj``.
        mirror_of: zone whose counter it shows.
    """

    name: str
    path: Path
    watts: float
    max_uj: int
    energy_uj: float
    offset_uj: int
    descriptor: int
    mirror_of: "Zone | None" = None

    @property
    def counter_uj(self) -> int:
        """What the file shows."""
        source = self.mirror_of or self
        return (source.offset_uj + int(source.energy_uj)) % source.max_uj

    def write(self) -> None:
        """Write the counter in one call and always the same number of bytes, so that a reader never sees half of it."""
        os.pwrite(self.descriptor, f"{self.counter_uj:<{_WIDTH}d}\n".encode(), 0)

    def reset(self) -> None:
        """Start the counter again from 0, as when the driver is loaded anew."""
        self.offset_uj = -int(self.energy_uj)
        self.write()


class Powercap:
    """A tree of zones under a folder."""

    def __init__(self, root: Path, control: str = "intel-rapl") -> None:
        self.root = root
        self.zones: list[Zone] = []
        self._control = control
        (root / control).mkdir(parents=True)

    def add(
        self,
        name: str,
        watts: float,
        max_uj: int = 262_143_328_850,
        offset_uj: int = 1_000_000,
        parent: Zone | None = None,
        mirror_of: Zone | None = None,
        limits_w: tuple[float, ...] = (125.0, 250.0),
    ) -> Zone:
        """Add a zone: a package or ``psys``, or with a parent ``core`` or ``dram``.

        Args:
            name: what stands in its file ``name``.
            watts: power that its counter grows by.
            max_uj: value that the counter never reaches.
            offset_uj: value of the counter now.
            parent: zone that it is part of.
            mirror_of: zone whose counter it shows.
            limits_w: its power limits, one constraint each.
        """
        siblings = [
            zone for zone in self.zones if zone.path.parent == (parent.path if parent else self.root / self._control)
        ]
        above = parent.path if parent else self.root / self._control
        path = above / f"{above.name}:{len(siblings)}"
        path.mkdir()
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{max_uj}\n")
        for number, limit_w in enumerate(limits_w):
            (path / f"constraint_{number}_power_limit_uw").write_text(f"{round(1e6 * limit_w)}\n")
        (self.root / path.name).symlink_to(path)
        if mirror_of is not None:  # one counter, as in the processor
            (path / "energy_uj").hardlink_to(mirror_of.path / "energy_uj")
        descriptor = os.open(path / "energy_uj", os.O_RDWR | os.O_CREAT, 0o444)
        zone = Zone(name, path, watts, max_uj, 0.0, offset_uj, descriptor, mirror_of)
        zone.write()
        self.zones.append(zone)
        return zone

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        for zone in self.zones:
            zone.energy_uj += 1e6 * zone.watts * seconds
        for zone in self.zones:
            zone.write()

    def run(self, stop: threading.Event, period_s: float = 0.001) -> None:
        """Let time pass as it does, with a refresh each period, until told to stop."""
        last_s = time.monotonic()
        while not stop.wait(period_s):
            now_s = time.monotonic()
            self.advance(now_s - last_s)
            last_s = now_s

    @contextmanager
    def running(self, period_s: float = 0.001) -> Iterator[None]:
        """Let time pass in a thread while the block runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self.run, args=(stop, period_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Close the files."""
        for zone in self.zones:
            os.close(zone.descriptor)
        self.zones = []


def main(arguments: list[str]) -> None:
    """Make a tree of zones ``name=watts`` and let time pass until standard input ends, so with the parent's death."""
    tree = Powercap(Path(arguments[0]))
    package: Zone | None = None
    for argument in arguments[1:]:
        name, _, watts = argument.partition("=")
        alone = name.startswith(("package", "psys"))
        zone = tree.add(name, float(watts), parent=None if alone else package)
        package = zone if alone else package
    print("ready", flush=True)
    last_s = time.monotonic()
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        now_s = time.monotonic()
        tree.advance(now_s - last_s)
        last_s = now_s


if __name__ == "__main__":
    main(sys.argv[1:])
