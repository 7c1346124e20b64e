"""Data sheets of one's own: a YAML file with the figures as makers print them.

::

    name: RTX 5090
    tflops: {fp32: 104.8, tf32: 104.8, fp16: 209.5, bf16: 209.5}   # dense; fp32 is needed, the others where they exist
    bandwidth_gb_per_s: 1792
    memory_gb: 32
    tdp_w: 575
    num_cores: 21760
    memory: gddr                                                   # or hbm; or idle_w, where it has been measured
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator

from perjoule.config.base import Config
from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError, suggestion
from perjoule.estimate.devices import IDLE_SHARE, PRECISIONS, Device


class SheetConfig(Config):
    """What a data sheet says of an accelerator."""

    name: str
    """By which ``--device`` and files of measurements call it."""
    tflops: dict[str, PositiveFloat]
    """Dense peaks by ``fp32``, ``tf32``, ``fp16``, ``bf16``, in TFLOP/s."""
    bandwidth_gb_per_s: PositiveFloat
    """Between the chip and its memory."""
    memory_gb: PositiveFloat
    """Of that memory."""
    tdp_w: PositiveFloat
    """Highest power that the default settings allow."""
    num_cores: PositiveInt
    """Shader cores, or processor cores."""
    memory: Literal["gddr", "hbm"] | None = None
    """Kind of memory, by which the idle power is told."""
    idle_w: PositiveFloat | None = None
    """Power without work where it has been measured, clocks up."""

    @field_validator("tflops")
    @classmethod
    def _has_known_precisions(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in PRECISIONS:
                raise ValueError(f"unknown precision {name!r}: {suggestion(name, PRECISIONS)}")
        if "fp32" not in value:
            raise ValueError("needs fp32")
        return value

    @model_validator(mode="after")
    def _tells_idle_power(self) -> SheetConfig:
        if self.memory is None and self.idle_w is None:
            raise ValueError("give memory (gddr or hbm) or idle_w: the idle power follows from either")
        return self

    def build(self) -> Device:
        """Return the device.

        Raises:
            ConfigError: if it cannot be.
        """
        idle_w = self.idle_w
        if idle_w is None:
            assert self.memory is not None
            idle_w = self.tdp_w * IDLE_SHARE[self.memory]
        return Device(
            self.name,
            {name: value * 1e12 for name, value in self.tflops.items()},
            self.bandwidth_gb_per_s * 1e9,
            self.memory_gb * 1e9,
            self.tdp_w,
            idle_w,
            self.num_cores,
        )


def read_sheets(paths: Sequence[Path]) -> dict[str, Device]:
    """Return the devices of data sheets by name.

    Args:
        paths: one file per device, or folders of such files (a shelf of one's own).

    Raises:
        ConfigError: listing every mistake of a file.
    """
    found: dict[str, Device] = {}
    for path in paths:
        files = sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path}: no data sheet (*.yaml) in this folder")
        for file in files:
            device = load(SheetConfig, file).config.build()
            if device.name in found:
                raise ConfigError(f"{file}: a second data sheet of {device.name!r}")
            found[device.name] = device
    return found
