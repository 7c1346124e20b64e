"""What recording costs on this machine: the result of the overhead experiment, kept in the machine's profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from perjoule.measure.machine import MachineProfile

NOT_MEASURED = "not measured: perjoule doctor --overhead"
AGAIN = "no-op again"
"""The arm that differs in nothing from the one it is compared with."""
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times as long a step takes, with a 95 % bootstrap interval of the median over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def paired(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
        """Return the ratio of two arms that took turns."""
        ratios = np.asarray(numerator) / np.asarray(denominator)
        resampled = np.random.default_rng(0).choice(ratios, size=(_NUM_RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
        return cls(float(np.median(ratios)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Overhead:
    """What the experiment found on one kind of device.

    Args:
        step_s: median seconds of a step of which nothing is recorded.
        num_rounds: blocks of each arm.
        num_steps: steps of a block.
        ratios: arm to its time over that of the arm that records nothing; ``no-op again`` is the band of the method.
        synchronising: ``synchronised energy`` over ``energy``.
    """

    step_s: float
    num_rounds: int
    num_steps: int
    ratios: Mapping[str, Ratio]
    synchronising: Ratio


def store(found: Overhead, profile: MachineProfile, device: str) -> None:
    """Keep a result for ``cpu`` or ``cuda``."""
    profile.put(f"overhead/{device}", asdict(found))


def stored(profile: MachineProfile, device: str) -> Overhead | None:
    """Return what was found on this machine before, or None.

    Args:
        profile: keeps it.
        device: ``cpu`` or ``cuda``.
    """
    kept = profile.get(f"overhead/{device}")
    if kept is None:
        return None
    ratios = {arm: Ratio(**ratio) for arm, ratio in kept["ratios"].items()}
    return Overhead(**{**kept, "ratios": ratios, "synchronising": Ratio(**kept["synchronising"])})


def synchronising(profile: MachineProfile, device: str) -> str:
    """Return in words what waiting for the device at every edge costs here."""
    known = stored(profile, device)
    if known is None:
        return NOT_MEASURED
    return f"a step takes {known.synchronising} times as long with fence=edge (perjoule doctor --overhead)"
