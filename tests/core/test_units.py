"""Quantities for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perjoule.core.units import byte_size, duration, parse_energy_j, parse_mass_g, si

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


@pytest.mark.parametrize(
    ("text", "joules"),
    [
        ("500 J", 500),
        ("50kJ", 50e3),
        (" 1.5MJ ", 1.5e6),
        ("2 kWh", 7.2e6),
        ("1e-3 kWh", 3600),
        ("0.5Wh", 1800),
        (".5 GJ", 5e8),
        ("1 MWh", 3.6e9),
    ],
)
def test_energy_is_read_in_joules(text: str, joules: float) -> None:
    assert parse_energy_j(text) == pytest.approx(joules, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "grams"), [("10g", 10), ("0.2 kg", 200), ("500 mg", 0.5), ("1 t", 1e6), ("1.5e3 mg", 1.5)]
)
def test_mass_is_read_in_grams(text: str, grams: float) -> None:
    assert parse_mass_g(text) == pytest.approx(grams, rel=1e-12)


@pytest.mark.parametrize("value", [500, 0.25, None, [1]], ids=str)
def test_what_is_no_text_is_left_to_the_next_check(value: object) -> None:
    assert parse_energy_j(value) is value
    assert parse_mass_g(value) is value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("much", "not 'much'"),
        ("50", "not '50'"),
        ("-3 J", "not '-3 J'"),
        ("3 J/s", "not '3 J/s'"),
        ("50 KJ", "not '50 KJ'; did you mean 50 kJ?"),
        ("2kwh", "not '2kwh'; did you mean 2 kWh?"),
        ("10 g", "not '10 g'"),
        (True, "not true"),
    ],
)
def test_an_energy_that_cannot_be_read_says_what_is_accepted(value: object, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_energy_j(value)
    accepted = "must be an energy such as 500 J, 50kJ, 1.5 MJ or 2 kWh, or a number of joules, "
    assert str(refused.value) == accepted + said


def test_a_mass_that_cannot_be_read_says_what_is_accepted() -> None:
    with pytest.raises(ValueError) as refused:
        parse_mass_g("10 Kg")
    accepted = "must be a mass such as 500 mg, 10g or 0.2 kg, or a number of grams, "
    assert str(refused.value) == accepted + "not '10 Kg'; did you mean 10 kg?"
