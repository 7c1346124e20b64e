"""What is metered while a run trains, and how its energy is told apart by phase."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from perjoule.config import Component, Config
from perjoule.measure import SHELF


class EnergyConfig(Config):
    """Meters, sampler and calibration."""

    meters: Annotated[tuple[Config, ...], Component(SHELF, many=True)] = Field(
        default=("nvidia", "rapl", "cpu_time", "ram"), validate_default=True
    )
    """What to read; those that cannot be read are listed with the reason. A modelled figure counts only where no
    measured one covers the same part of the machine."""
    sampler: Literal["process", "thread", "off"] = "process"
    """Who reads the meters: one process per node, a thread of the leading rank (slower training), or nobody."""
    rate_hz: float = Field(default=10.0, ge=1, le=20)
    """Readings per second of every meter."""
    calibrate: bool = False
    """Before training, repeat each phase for ``burst_s`` on a saved state that is restored afterwards."""
    burst_s: float = Field(default=3.0, ge=0.5, le=60)
    """Length of each repetition."""
    cross_check: Literal["codecarbon"] | None = None
    """Let CodeCarbon meter the whole run besides, once per node, and explain the difference in the report."""
