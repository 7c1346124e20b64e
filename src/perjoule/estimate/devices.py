"""Data sheets of accelerators: what the makers publish, and the idle power of their class.

Peaks are dense (without structured sparsity) and, for consumer cards, those of products accumulated in float32. Where
a format is missing the next wider one that exists is used. ``idle_w`` is the power of a card that holds a process and
computes nothing, its clocks up. Makers do not publish it. It goes with the kind of memory, whose interface runs at full
clock then: GDDR takes 0.25 of the limit (RTX 3070: 54 to 56 of 220 W) to 0.34 (RTX 3090: 105 to 121 of 350 W), read at
0 % use in GAISSA's raw traces of 2022 and 2023; stacked memory (HBM) 0.14 (V100 36, P100 34 of 250 W, the mean of a
workload that leaves them idle). The estimator learns by how much cards differ from their class.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from perjoule.core.errors import ConfigError, suggestion

IDLE_SHARE: Mapping[str, float] = {"gddr": 0.28, "hbm": 0.14}
"""Idle power over the limit, by kind of memory."""
_WIDER: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "fp16": ("fp16", "tf32", "fp32"),
    "bf16": ("bf16", "fp16", "tf32", "fp32"),
}


PRECISIONS = tuple(_WIDER)


@dataclass(frozen=True)
class Device:
    """What a data sheet says of an accelerator (or a processor).

    Args:
        name: as in the table below, or of your own.
        peak_flops: FLOP/s by ``fp32``, ``tf32``, ``fp16``, ``bf16``; ``fp32`` must be there.
        bandwidth: bytes per second between the chip and its memory.
        memory_bytes: of that memory.
        tdp_w: highest power that the default settings allow, in watts.
        idle_w: power without work, in watts.
        num_cores: shader cores, or processor cores.
    """

    name: str
    peak_flops: Mapping[str, float]
    bandwidth: float
    memory_bytes: float
    tdp_w: float
    idle_w: float
    num_cores: int

    def __post_init__(self) -> None:
        """Refuse what cannot be a device."""
        sizes = {"bandwidth": self.bandwidth, "memory_bytes": self.memory_bytes, "tdp_w": self.tdp_w}
        sizes |= {"idle_w": self.idle_w, "num_cores": self.num_cores, **self.peak_flops}
        for what, value in sizes.items():
            if not value > 0:
                raise ConfigError(f"device {self.name!r}: {what} must be above 0, not {value:g}")
        if "fp32" not in self.peak_flops:
            raise ConfigError(f"device {self.name!r}: peak_flops needs fp32, and has {sorted(self.peak_flops)}")
        if self.idle_w >= self.tdp_w:
            raise ConfigError(f"device {self.name!r}: idle_w ({self.idle_w:g}) must be below tdp_w ({self.tdp_w:g})")

    def peak(self, precision: str) -> float:
        """Return the FLOP/s of matrix products in a precision, or in the next wider one that the device has.

        Raises:
            ConfigError: if there is no such precision.
        """
        if precision not in _WIDER:
            raise ConfigError(f"unknown precision {precision!r}: {suggestion(precision, _WIDER)}")
        return next(self.peak_flops[one] for one in _WIDER[precision] if one in self.peak_flops)


def _sheet(
    name: str,
    tflops: tuple[float, ...],
    gb_per_s: float,
    memory_gb: float,
    tdp_w: float,
    num_cores: int,
    memory: str = "gddr",
) -> Device:
    """Return a device from the figures of its sheet; ``tflops`` are fp32, then tf32, fp16 and bf16 as far as given."""
    peaks = {key: value * 1e12 for key, value in zip(_WIDER, tflops, strict=False) if value}
    return Device(name, peaks, gb_per_s * 1e9, memory_gb * 1e9, tdp_w, tdp_w * IDLE_SHARE[memory], num_cores)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _sheet("GTX 750 Ti", (1.39,), 86.4, 2, 60, 640),
        _sheet("GTX 1080 Ti", (11.3,), 484, 11, 250, 3584),
        _sheet("P100", (9.3, 0, 18.7), 732, 16, 250, 3584, "hbm"),
        _sheet("V100", (14.0, 0, 112), 900, 16, 250, 5120, "hbm"),
        _sheet("V100 SXM2", (15.7, 0, 125), 900, 16, 300, 5120, "hbm"),
        _sheet("T4", (8.1, 0, 65), 320, 16, 70, 2560),
        _sheet("RTX 2080 Ti", (13.4, 0, 53.8), 616, 11, 250, 4352),
        _sheet("RTX 6000", (16.3, 0, 130.5), 672, 24, 260, 4608),
        _sheet("RTX 3070", (20.3, 20.3, 40.6, 40.6), 448, 8, 220, 5888),
        _sheet("RTX 3080", (29.8, 29.8, 59.5, 59.5), 760, 10, 320, 8704),
        _sheet("RTX 3090", (35.6, 35.6, 71.2, 71.2), 936, 24, 350, 10496),
        _sheet("RTX A6000", (38.7, 77.4, 154.8, 154.8), 768, 48, 300, 10752),
        _sheet("A10", (31.2, 62.5, 125, 125), 600, 24, 150, 9216),
        _sheet("A40", (37.4, 74.8, 149.7, 149.7), 696, 48, 300, 10752),
        _sheet("A100 40GB", (19.5, 156, 312, 312), 1555, 40, 400, 6912, "hbm"),
        _sheet("A100 PCIe 40GB", (19.5, 156, 312, 312), 1555, 40, 250, 6912, "hbm"),
        _sheet("A100 80GB", (19.5, 156, 312, 312), 2039, 80, 400, 6912, "hbm"),
        _sheet("A100 PCIe 80GB", (19.5, 156, 312, 312), 1935, 80, 300, 6912, "hbm"),
        _sheet("RTX 4090", (82.6, 82.6, 165.2, 165.2), 1008, 24, 450, 16384),
        _sheet("L4", (30.3, 60, 121, 121), 300, 24, 72, 7424),
        _sheet("L40S", (91.6, 183, 362, 362), 864, 48, 350, 18176),
        _sheet("H100 PCIe", (51.2, 378, 756, 756), 2000, 80, 350, 14592, "hbm"),
        _sheet("H100", (66.9, 494.7, 989.4, 989.4), 3352, 80, 700, 16896, "hbm"),
    )
}
_ALIASES: Mapping[str, str] = {
    "rtx6000": "RTX 6000",
    "quadrortx6000": "RTX 6000",
    "a100": "A100 40GB",
    "a100sxm440gb": "A100 40GB",
    "a100sxm480gb": "A100 80GB",
    "a100pcie40gb": "A100 PCIe 40GB",
    "a100pcie80gb": "A100 PCIe 80GB",
    "a10080gbpcie": "A100 PCIe 80GB",
    "v100pcie16gb": "V100",
    "v100pcie32gb": "V100",
    "v100sxm216gb": "V100 SXM2",
    "v100sxm232gb": "V100 SXM2",
    "p100pcie16gb": "P100",
    "h100sxm": "H100",
    "h10080gbhbm3": "H100",
}


def find_device(name: str, more: Mapping[str, Device] | None = None) -> Device:
    """Return the data sheet of a device by the name that people, drivers and file names give it.

    Args:
        name: such as ``RTX 3090``, ``NVIDIA GeForce RTX 3090``, ``Tesla V100-PCIE-16GB`` or ``rtx6000``.
        more: data sheets of your own, by name; they win.

    Raises:
        ConfigError: if there is no data sheet.
    """
    table = {**DEVICES, **(more or {})}
    short = re.sub(r"nvidia|geforce|tesla|graphics|[^a-z0-9]", "", name.lower())
    for known, device in reversed(table.items()):
        if re.sub(r"[^a-z0-9]", "", known.lower()) in (short, re.sub(r"[^a-z0-9]", "", name.lower())):
            return device
    if short in _ALIASES:
        return table[_ALIASES[short]]
    named = parse_devices(name)
    if sum(named.values()) != 1:
        raise ConfigError(f"{name!r} names {sum(named.values())} devices: name one, and give the figures of one")
    raise ConfigError(
        f"no data sheet of the device {name!r}: {suggestion(name, table)}; for another one write its data sheet into a "
        f"file and give it with --device-sheet FILE (from Python: devices={{name: Device(…)}})"
    )


_SEPARATORS = re.compile(r"\s*(?:[|;,&+]|\band\b)\s*")
_MULTIPLIERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<num>\d+)\s*[x×*]\s*(?P<name>\D.*|\d{3,}.*)",  # 8 x NVIDIA A40, 4xA100, 2*3090
        r"(?P<num>\d{1,2})\s+(?P<name>[a-z].*[a-z].*\d.*)",  # 2 NVIDIA A40, and not 750 Ti
        r"(?P<name>.*\S)[\s(\[]+[x×*]\s*(?P<num>\d+)[)\]]?",  # A100 x4, A100 (x4)
        r"(?P<name>.*\d)[x×*](?P<num>\d{1,3})",  # A100x4
        r"(?P<name>.*\S)\s+(?P<num>\d{1,3})[x×*]",  # A100 4x
        r"(?P<name>.*\S)\s*[(\[]\s*(?P<num>\d+)\s*(?:[x×*]|(?:gpu|device|card|socket|cpu)s?)?\s*[)\]]",  # A100 (4 GPUs)
    )
)


def parse_devices(text: str, known: Collection[str] = ()) -> dict[str, int]:
    """Return how many of each device a text names: ``8 x NVIDIA A40``, ``A100 x4``, ``A40 | A40``.

    Args:
        text: a cell or an argument, with or without multipliers.
        known: names that are taken as they are.
    """
    if text in known:
        return {text: 1}
    found: dict[str, int] = {}
    for part in _SEPARATORS.split(text.strip()):
        match = next((match for one in _MULTIPLIERS if (match := one.fullmatch(part))), None)
        name, num = (match["name"].strip(), int(match["num"])) if match else (part, 1)
        found[name] = found.get(name, 0) + num
    return found
