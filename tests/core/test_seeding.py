"""Derived seeds: the same for ever, and independent of one another."""

from hypothesis import given
from hypothesis import strategies as st

from perjoule.core.seeding import derive


def test_derived_seeds_never_change() -> None:
    assert derive(0) == 4_246_866_556_266_386_882
    assert derive(0, "data") == 6_426_741_727_300_557_915
    assert derive(7, "worker", 3) == 6_070_054_771_158_137_538


@given(st.integers(0, 2**63 - 1), st.text(), st.integers())
def test_derived_seed_is_a_torch_seed(seed: int, name: str, index: int) -> None:
    assert 0 <= derive(seed, name, index) < 2**63


def test_each_seed_and_name_has_a_stream_of_its_own() -> None:
    streams = [derive(seed, name, index) for seed in range(5) for name in ("data", "model") for index in range(50)]
    assert len(set(streams)) == len(streams)


def test_order_of_the_names_matters() -> None:
    assert derive(0, "a", "b") != derive(0, "b", "a")
    assert derive(0, "ab") != derive(0, "a", "b")
