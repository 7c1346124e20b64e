"""Readings are read back as they were written, live, torn, or after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.core.errors import RunFolderError
from perjoule.runs import sample_writer, samples
from perjoule.runs.folder import SAMPLES, sample_path
from perjoule.runs.mapped import BLOCK_BYTES, HEADER_BYTES
from perjoule.runs.sample_writer import RECORD, SampleWriter, attempt_path
from perjoule.runs.samples import SampleReader, read_samples, sample_files

CHANNELS = [{"domain": "package-0", "unit": "µJ"}, {"domain": "monitor", "unit": "ns"}]
FACTS: dict[str, Any] = {"node": "here", "rate_hz": 10.0, "unavailable": []}


def written(path: Path, num_readings: int = 10) -> SampleWriter:
    """Write readings of both channels in turn, 100 ns long and a microsecond apart."""
    writer = SampleWriter(path, CHANNELS, FACTS)
    for number in range(num_readings):
        writer.put(number % 2, 1000 * number, 1000 * number + 100, 7 * number)
    return writer


def test_what_is_put_is_read_back(tmp_path: Path) -> None:
    before_ns = time.monotonic_ns()
    writer = written(tmp_path / "s.bin", 5)
    writer.close()
    writer.close()
    found = read_samples(tmp_path / "s.bin")
    assert found.channels == tuple(CHANNELS)
    assert found.num_lost == 0
    assert {key: found.header[key] for key in FACTS} == FACTS
    assert (found.header["pid"], found.header["schema"]) == (os.getpid(), 1)
    assert before_ns <= found.header["clock"]["monotonic_ns"] <= time.monotonic_ns()
    assert abs(found.header["clock"]["wall_ns"] - time.time_ns()) < 60e9
    for channel, numbers in ((0, [0, 2, 4]), (1, [1, 3])):
        before, after, raw = found.of(channel)
        assert before.tolist() == [1000 * number for number in numbers]
        assert after.tolist() == [1000 * number + 100 for number in numbers]
        assert raw.tolist() == [7 * number for number in numbers]
        assert {one.dtype for one in (before, after, raw)} == {np.dtype(np.int64)}


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2**62), st.integers(0, 2**33), st.integers(-(2**63), 2**63 - 1))
    )
)
@settings(max_examples=50, deadline=None)
def test_any_value_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, int]]) -> None:
    path = tmp_path_factory.mktemp("samples") / "s.bin"
    writer = SampleWriter(path, CHANNELS, FACTS)
    for channel, t_ns, duration_ns, raw in rows:
        writer.put(channel, t_ns, t_ns + duration_ns, raw)
    writer.close()
    found = read_samples(path)
    assert len(found.records) == len(rows)
    for channel in (0, 1):
        mine = [row for row in rows if row[0] == channel]
        before, after, values = found.of(channel)
        assert before.tolist() == [row[1] for row in mine]
        assert (after - before).tolist() == [min(row[2], 2**32 - 1) for row in mine]
        assert values.tolist() == [row[3] for row in mine]


def test_a_reading_that_failed_is_no_value(tmp_path: Path) -> None:
    writer = written(tmp_path / "s.bin", 2)
    writer.put(0, 5000, 5100, None)
    writer.put(0, 6000, 6100, 2**63)
    writer.put(0, 7000, 7100, 0)
    writer.close()
    found = read_samples(tmp_path / "s.bin")
    assert found.records["flag"].tolist() == [0, 0, 1, 1, 0]
    before, _, raw = found.of(0)
    assert (before.tolist(), raw.tolist()) == ([0, 7000], [0, 0])


def test_a_clock_that_seems_to_run_backwards_gives_no_duration(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "s.bin", CHANNELS, FACTS)
    writer.put(0, 1000, 900, 1)
    writer.close()
    assert read_samples(tmp_path / "s.bin").records["duration_ns"].tolist() == [0]


def test_a_live_file_reads_as_a_closed_one(tmp_path: Path) -> None:
    writer = written(tmp_path / "s.bin")
    live = read_samples(tmp_path / "s.bin").records.copy()
    writer.close()
    assert len(live) == 10
    assert (live == read_samples(tmp_path / "s.bin").records).all()


def test_header_of_many_sensors_takes_several_blocks(tmp_path: Path) -> None:
    channels = [{"domain": f"gpu-{number}", "method": "x" * 200} for number in range(100)]
    writer = SampleWriter(tmp_path / "s.bin", channels, FACTS)
    writer.put(99, 1, 2, 3)
    writer.close()
    assert (tmp_path / "s.bin").stat().st_size % HEADER_BYTES == RECORD.size
    found = read_samples(tmp_path / "s.bin")
    assert len(found.channels) == 100
    assert [one.tolist() for one in found.of(99)] == [[1], [2], [3]]


def test_a_file_grows_over_several_blocks(tmp_path: Path) -> None:
    num = BLOCK_BYTES // RECORD.size + 10
    written(tmp_path / "s.bin", num).close()
    found = read_samples(tmp_path / "s.bin")
    assert len(found.records) == num
    assert found.of(0)[2].tolist() == [7 * number for number in range(0, num, 2)]


def test_reading_in_chunks_equals_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "s.bin", 50).close()
    whole = [one.tolist() for one in read_samples(tmp_path / "s.bin").of(1)]
    monkeypatch.setattr(samples, "CHUNK_RECORDS", 7)
    assert [one.tolist() for one in read_samples(tmp_path / "s.bin").of(1)] == whole


def test_a_reader_of_a_growing_file_gets_every_reading_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_PIECE_RECORDS", 8)
    writer = written(tmp_path / "s.bin", 3)
    reader = SampleReader(tmp_path / "s.bin")
    got = [reader.new().records["raw"].tolist()]
    for number in range(3, 40):
        writer.put(0, number, number, 7 * number)
        if number in (3, 30):
            got.append(reader.new().records["raw"].tolist())
    got.append(reader.new().records["raw"].tolist())
    writer.close()
    got.append(reader.new().records["raw"].tolist())
    assert [len(one) for one in got] == [3, 1, 27, 9, 0]
    assert [raw for one in got for raw in one] == [7 * number for number in range(40)]


@pytest.mark.parametrize("cut", range(2 * RECORD.size + 1))
def test_truncation_at_any_byte_keeps_every_whole_record(tmp_path: Path, cut: int) -> None:
    written(tmp_path / "s.bin", 6).close()
    os.truncate(tmp_path / "s.bin", HEADER_BYTES + 6 * RECORD.size - cut)
    found = read_samples(tmp_path / "s.bin")
    assert (len(found.records), found.num_lost) == (6 - -(-cut // RECORD.size), 0)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    writer = written(path, 4)
    writer.put(1, 2**62, 2**62 + 17, -12345)
    writer.put(1, 1, 2, 3)
    writer.close()
    whole = bytearray(path.read_bytes())
    start = HEADER_BYTES + 4 * RECORD.size
    for bit in range(RECORD.size * 8):
        whole[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        found = read_samples(path)
        assert (len(found.records), found.num_lost) == (4, 1), bit
        whole[start + bit // 8] ^= 1 << bit % 8


def test_what_is_no_sample_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    with pytest.raises(RunFolderError, match=r"cannot read the sample file .*s\.bin: No such file"):
        read_samples(path)
    path.write_bytes(b"PJEVENTS" * HEADER_BYTES)
    with pytest.raises(RunFolderError, match="is not a sample file, or its first 4 KiB are cut off"):
        read_samples(path)


def test_a_file_of_a_newer_version_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_writer, "SCHEMA_VERSION", 2)
    written(tmp_path / "s.bin").close()
    with pytest.raises(RunFolderError, match="has schema 2; this perjoule reads 1 to 1: upgrade perjoule"):
        read_samples(tmp_path / "s.bin")


def test_a_file_that_vanished_while_it_was_read_is_an_error(tmp_path: Path) -> None:
    written(tmp_path / "s.bin").close()
    reader = SampleReader(tmp_path / "s.bin")
    (tmp_path / "s.bin").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read the sample file .*No such file"):
        reader.new()


def test_a_full_disk_is_an_error_that_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, full = tmp_path / "s.bin", BLOCK_BYTES // RECORD.size
    writer = written(path, full)
    allocate = os.posix_fallocate

    def no_space(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(RunFolderError, match=f"cannot extend the sample file by 1 MiB: No space.*the {full} records"):
        writer.put(0, 1, 2, 3)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    writer.put(0, 1, 2, 3)
    writer.sync()
    writer.close()
    assert len(read_samples(path).records) == full + 1


def test_sample_files_are_in_the_order_of_nodes_and_attempts(tmp_path: Path) -> None:
    (tmp_path / SAMPLES).mkdir()
    expected = [
        sample_path(tmp_path, 1, node, attempt) for node, attempt in (("a-1", 0), ("a-1", 2), ("a-1", 10), ("b", 0))
    ]
    for path in reversed([*expected, sample_path(tmp_path, 2, "a-1")]):
        path.touch()
    (tmp_path / SAMPLES / "0001-nonsense.bin").touch()
    assert sample_files(tmp_path, 1) == expected
    assert sample_files(tmp_path, 0) == []
    assert sample_files(tmp_path / "nowhere", 1) == []
    assert attempt_path(expected[0], 2) == expected[1]


def test_a_writer_killed_at_any_instant_leaves_readable_samples(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    code = (
        "import sys; from pathlib import Path; from perjoule.runs.sample_writer import SampleWriter\n"
        "assert 'numpy' not in sys.modules\n"
        "writer = SampleWriter(Path(sys.argv[1]), [{}], {}); print('ready', flush=True); number = 0\n"
        "while number < 10_000_000: writer.put(0, number, number, number); number += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = read_samples(path)
    assert len(found.records) > 1000
    assert found.num_lost == 0
    assert (found.records["raw"] == np.arange(len(found.records))).all()
