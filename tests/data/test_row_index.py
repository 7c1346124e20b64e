"""The index of padded rows is small, exact, and made once."""

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.data import row_index as module
from perjoule.data.row_index import LongDocuments, row_index
from perjoule.data.shards import Shard, SplitTokens


def split(*shards: list[int]) -> SplitTokens:
    """Return shards of documents with so many transitions each, without tokens."""
    made = []
    for transitions in shards:
        offsets = np.cumsum([0, *(1 + count for count in transitions)])
        made.append(Shard(np.empty(int(offsets[-1]), np.uint16), offsets, 0))
    return SplitTokens(tuple(made))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from(["split", "truncate"]),
    st.integers(1, 5),
)
def test_rows_are_found_as_if_all_were_listed(
    shards: list[list[int]], seq_len: int, long: LongDocuments, block: int
) -> None:
    expected = []
    for number, transitions in enumerate(shards):
        offset = 0
        for count in transitions:
            pieces = range(0, count, seq_len) if long == "split" else range(min(count, 1))
            expected += [[number, offset + begin, min(count - begin, seq_len)] for begin in pieces]
            offset += 1 + count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        patch.setattr(module, "_PIECE", 2 * block)
        index = row_index(split(*shards), seq_len, long, "", None)
        assert index.num_rows == len(expected)
        assert index.num_transitions == sum(map(sum, shards))
        assert index.num_useful == sum(count for _, _, count in expected)
        if expected:
            order = np.random.default_rng(0).permutation(len(expected))
            assert index.find(order).tolist() == [expected[row] for row in order]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> SplitTokens:
    """A split with more documents than are counted at a time."""
    monkeypatch.setattr(module, "_PIECE", 512)
    return split([3] * 700, [11] * 500)


def test_index_of_a_large_split_is_made_once(
    large: SplitTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = row_index(large, 5, "split", "tokens-1", tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(module, "_count", None)
    second = row_index(large, 5, "split", "tokens-1", tmp_path / "cache")
    assert second.rows_before.tolist() == first.rows_before.tolist()
    assert (second.num_rows, second.num_useful, second.num_transitions) == (700 + 3 * 500, 7600, 7600)
    assert second.find(np.array([2199])).tolist() == first.find(np.array([2199])).tolist() == [[1, 499 * 12 + 10, 1]]


@pytest.mark.parametrize(
    ("seq_len", "long", "identity"), [(6, "split", "a"), (5, "truncate", "a"), (5, "split", "another")]
)
def test_index_is_that_of_its_split_and_settings(
    large: SplitTokens, tmp_path: Path, seq_len: int, long: LongDocuments, identity: str
) -> None:
    row_index(large, 5, "split", "a", tmp_path)
    row_index(large, seq_len, long, identity, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_index_of_a_small_split_is_not_kept(tmp_path: Path) -> None:
    row_index(split([3] * 700), 5, "split", "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"\x07" + data[41:], lambda _: b""]
)
def test_damaged_index_is_made_again(
    large: SplitTokens, tmp_path: Path, damage: "object", caplog: pytest.LogCaptureFixture
) -> None:
    rows = row_index(large, 5, "split", "a", tmp_path).rows_before.tolist()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert row_index(large, 5, "split", "a", tmp_path).rows_before.tolist() == rows
    assert f"the row index {file} is damaged: making it again" in caplog.text
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_the_file(
    large: SplitTokens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert row_index(large, 5, "split", "a", tmp_path / "file").num_rows == 2200
    assert "the row index is not kept: " in caplog.text


def test_index_is_a_hundredth_of_the_offsets(tmp_path: Path) -> None:
    """Ten million documents, whose offsets are 80 MB on disk."""
    num_documents = 10_000_000
    offsets = np.lib.format.open_memmap(tmp_path / "offsets.npy", "w+", np.int64, (num_documents + 1,))
    offsets[:] = np.arange(num_documents + 1) * 4
    large = SplitTokens((Shard(np.empty(0, np.uint16), offsets, 0),))
    tracemalloc.start()
    index = row_index(large, 2, "split", "a", None)
    making = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index.num_rows == 2 * num_documents
    assert index.find(np.array([2 * num_documents - 1])).tolist() == [[0, 4 * num_documents - 2, 1]]
    assert index.rows_before.nbytes + index.first_blocks.nbytes < num_documents * 8 / 100
    assert making < num_documents * 8
