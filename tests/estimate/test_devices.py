"""Data sheets."""

import pytest

from perjoule.core.errors import ConfigError
from perjoule.estimate.devices import DEVICES, Device, find_device


def make_device(**changes: object) -> Device:
    """Return a device that can be, with changes."""
    sheet = {"peak_flops": {"fp32": 1e13}, "bandwidth": 1e12, "memory_bytes": 1e10, "tdp_w": 200, "idle_w": 20}
    return Device(**{"name": "mine", "num_cores": 1000, **sheet, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("rtx6000", "RTX 6000"),
        ("Quadro RTX 6000", "RTX 6000"),
        ("v100", "V100"),
        ("Tesla V100-PCIE-16GB", "V100"),
        ("Tesla V100-SXM2-32GB", "V100 SXM2"),
        ("a40", "A40"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("GTX 750 Ti", "GTX 750 Ti"),
    ],
)
def test_a_device_is_found_by_the_names_that_drivers_and_files_give_it(spelt: str, name: str) -> None:
    assert find_device(spelt).name == name


def test_an_unknown_device_is_one_line_that_says_how_to_give_its_data_sheet() -> None:
    with pytest.raises(ConfigError) as caught:
        find_device("RTX 3091")
    message = str(caught.value)
    assert "no data sheet of the device 'RTX 3091': did you mean 'RTX 3090'?" in message
    assert "write its data sheet into a file and give it with --device-sheet FILE" in message
    assert "\n" not in message


def test_a_data_sheet_of_ones_own_wins_over_the_table() -> None:
    mine = make_device(name="rtx 3090")
    assert find_device("RTX 3090", {"rtx 3090": mine}) is mine
    assert find_device("My GPU", {"My GPU": mine}) is mine


def test_a_missing_format_runs_at_the_peak_of_the_next_wider_one() -> None:
    assert DEVICES["V100"].peak("tf32") == DEVICES["V100"].peak("fp32") == 14.0e12
    assert DEVICES["V100"].peak("bf16") == DEVICES["V100"].peak("fp16") == 112e12
    assert DEVICES["GTX 750 Ti"].peak("bf16") == 1.39e12
    assert DEVICES["A40"].peak("tf32") == 74.8e12


def test_an_unknown_precision_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'bf1': did you mean 'bf16'\?"):
        DEVICES["A40"].peak("bf1")


def test_narrower_formats_are_never_slower_in_the_table() -> None:
    for device in DEVICES.values():
        peaks = [device.peak(precision) for precision in ("fp32", "tf32", "fp16", "bf16")]
        assert peaks == sorted(peaks), device.name
        assert device.idle_w < device.tdp_w


@pytest.mark.parametrize("what", ["bandwidth", "memory_bytes", "tdp_w", "idle_w", "num_cores"])
def test_a_data_sheet_holds_only_figures_above_0(what: str) -> None:
    with pytest.raises(ConfigError, match=f"device 'mine': {what} must be above 0, not -5"):
        make_device(**{what: -5})


def test_a_data_sheet_needs_a_peak_in_float32_and_an_idle_power_below_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"device 'mine': peak_flops needs fp32, and has \['fp16'\]"):
        make_device(peak_flops={"fp16": 1e13})
    with pytest.raises(ConfigError, match=r"device 'mine': idle_w \(300\) must be below tdp_w \(200\)"):
        make_device(idle_w=300)
