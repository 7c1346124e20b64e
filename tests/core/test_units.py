"""Quantities for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perjoule.core.units import byte_size, duration, si

PREFIXES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (0, "J", "0 J"),
        (5_264_640, "", "5.26M"),
        (0.0123, "s", "12.3 ms"),
        (1000, "", "1k"),
        (999, "W", "999 W"),
        (999.9, "W", "1 kW"),
        (999_999, "", "1M"),
        (-2500, "J", "-2.5 kJ"),
        (2.5e-6, "s", "2.5 µs"),
        (3e-9, "s", "3 ns"),
        (2e-12, "s", "0.002 ns"),
        (1.5e12, "FLOP/s", "1.5 TFLOP/s"),
        (1.234e16, "", "12340T"),
    ],
)
def test_si_chooses_a_readable_prefix(value: float, unit: str, text: str) -> None:
    assert si(value, unit) == text


@given(st.floats(1e-9, 9.9e14))
def test_si_is_within_half_a_digit_of_the_value(value: float) -> None:
    number, prefix = si(value, "J").removesuffix("J").split(" ")
    assert float(number) * PREFIXES[prefix] == pytest.approx(value, rel=5.1e-3)
    assert float(number) < 1000
    assert "e" not in number


def test_si_shows_as_many_digits_as_asked() -> None:
    assert si(1234.5, "J", digits=2) == "1.2 kJ"
    assert si(1234.5, "J", digits=5) == "1.2345 kJ"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.5, "500 ms"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11_220, "3 h 07 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration_uses_the_units_of_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_byte_size_is_decimal() -> None:
    assert byte_size(2_500_000) == "2.5 MB"
    assert byte_size(0) == "0 B"
