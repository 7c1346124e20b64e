import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perjoule.core.errors import RunFolderError
from perjoule.runs import mapped
from perjoule.runs.journal import BEGIN, END, RECORD, JournalWriter, read_journal
from perjoule.runs.mapped import BLOCK_BYTES, HEADER_BYTES

PHASES = ("step", "data", "forward")


def written(path: Path, steps: int = 20) -> JournalWriter:
    writer = JournalWriter(path, PHASES, {"rank": 3})
    for step in range(1, steps + 1):
        writer.mark(step, writer.code("step", BEGIN))
        writer.mark(step, writer.code("step", END))
    return writer


def test_what_is_marked_is_read_back(tmp_path: Path) -> None:
    before_ns = time.monotonic_ns()
    writer = written(tmp_path / "j.bin", 3)
    writer.mark(3, writer.code("forward", BEGIN))
    writer.close()
    writer.close()
    journal = read_journal(tmp_path / "j.bin")
    assert journal.phases == list(PHASES)
    assert journal.header["rank"] == 3
    assert journal.header["pid"] == os.getpid()
    assert journal.records["step"].tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert journal.records["kind"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert journal.records["phase"].tolist() == [0, 0, 0, 0, 0, 0, 2]
    assert journal.num_lost == 0
    t_ns = journal.records["t_ns"]
    assert before_ns <= t_ns[0] and (np.diff(t_ns) >= 0).all() and t_ns[-1] <= time.monotonic_ns()
    assert (np.diff(journal.records["cpu_ns"]) >= 0).all()


def test_large_step_numbers_keep_their_check(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j.bin", PHASES)
    for step in (0, 1, 2**16, 2**31, 2**32 - 1):
        writer.mark(step, writer.code("forward", END))
    assert read_journal(tmp_path / "j.bin").records["step"].tolist() == [0, 1, 2**16, 2**31, 2**32 - 1]
    writer.close()


def test_a_journal_that_was_never_closed_reads_the_same(tmp_path: Path) -> None:
    writer = written(tmp_path / "j.bin")
    live = read_journal(tmp_path / "j.bin").records.copy()
    writer.close()
    assert len(live) == 40
    assert (live == read_journal(tmp_path / "j.bin").records).all()


def test_closing_cuts_the_reserved_space(tmp_path: Path) -> None:
    writer = written(tmp_path / "j.bin", 5)
    assert (tmp_path / "j.bin").stat().st_size == HEADER_BYTES + BLOCK_BYTES
    writer.close()
    assert (tmp_path / "j.bin").stat().st_size == HEADER_BYTES + 10 * RECORD.size


def test_a_journal_grows_over_several_blocks(tmp_path: Path) -> None:
    steps = BLOCK_BYTES // RECORD.size + 10
    writer = written(tmp_path / "j.bin", steps)
    writer.close()
    journal = read_journal(tmp_path / "j.bin")
    assert len(journal.records) == 2 * steps
    assert journal.records["step"][-1] == steps


def test_reading_in_chunks_equals_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.bin"
    written(path, 50).close()
    whole = read_journal(path).records.copy()
    monkeypatch.setattr(mapped, "CHUNK_RECORDS", 7)
    assert (read_journal(path).records == whole).all()


@pytest.mark.parametrize("cut", range(2 * RECORD.size + 1))
def test_truncation_at_any_byte_keeps_every_whole_record(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.bin"
    written(path, 5).close()
    os.truncate(path, path.stat().st_size - cut)
    journal = read_journal(path)
    assert len(journal.records) == 10 - -(-cut // RECORD.size)
    assert journal.num_lost == 0


def test_a_torn_last_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    written(path, 5).close()
    whole = path.read_bytes()
    for kept in range(RECORD.size - 4):
        path.write_bytes(whole[: -RECORD.size + kept] + b"\0" * (RECORD.size - kept))
        journal = read_journal(path)
        assert len(journal.records) == 9, kept


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    written(path, 5).close()
    whole = bytearray(path.read_bytes())
    start = HEADER_BYTES + 4 * RECORD.size
    for bit in range(RECORD.size * 8):
        whole[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        journal = read_journal(path)
        assert (len(journal.records), journal.num_lost) == (4, 5), bit
        whole[start + bit // 8] ^= 1 << bit % 8


def test_an_empty_journal_has_no_records(tmp_path: Path) -> None:
    JournalWriter(tmp_path / "j.bin", PHASES).close()
    assert len(read_journal(tmp_path / "j.bin").records) == 0


def test_what_is_no_journal_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    with pytest.raises(RunFolderError, match=r"cannot read the journal .*j\.bin: No such file"):
        read_journal(path)
    path.write_bytes(b"PJEVENTS")
    with pytest.raises(RunFolderError, match="is not a journal, or its first 4 KiB are cut off"):
        read_journal(path)
    path.write_bytes(b"PK" * HEADER_BYTES)
    with pytest.raises(RunFolderError, match="is not a journal"):
        read_journal(path)


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    written(path, 1).close()
    damaged = bytearray(path.read_bytes())
    damaged[14] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(RunFolderError, match=r"the header of the journal .* is damaged"):
        read_journal(path)


def test_an_existing_journal_is_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path / "j.bin", 1).close()
    with pytest.raises(RunFolderError, match=r"cannot create the journal .*File exists"):
        JournalWriter(tmp_path / "j.bin", PHASES)


def test_header_takes_as_much_room_as_its_names_need(tmp_path: Path) -> None:
    names = tuple(f"phase{number}" for number in range(900))
    writer = JournalWriter(tmp_path / "j.bin", names)
    writer.mark(1, writer.code("phase899", BEGIN))
    writer.close()
    assert (tmp_path / "j.bin").stat().st_size == 3 * HEADER_BYTES + RECORD.size
    journal = read_journal(tmp_path / "j.bin")
    assert journal.phases == list(names)
    assert journal.records["phase"].tolist() == [899]
    os.truncate(tmp_path / "j.bin", 2 * HEADER_BYTES)
    with pytest.raises(RunFolderError, match=r"the header of the journal .* is damaged"):
        read_journal(tmp_path / "j.bin")


def test_a_phase_may_get_its_name_while_the_journal_grows(tmp_path: Path) -> None:
    writer = written(tmp_path / "j.bin", 2)
    writer.add_phase("later")
    writer.mark(2, writer.code("later", BEGIN))
    live = read_journal(tmp_path / "j.bin")
    writer.close()
    assert live.phases == [*PHASES, "later"]
    assert live.header["rank"] == 3
    assert live.records["phase"].tolist() == [0, 0, 0, 0, 3]


def test_names_that_do_not_fit_the_first_header_are_an_error_that_changes_nothing(tmp_path: Path) -> None:
    writer = written(tmp_path / "j.bin", 2)
    with pytest.raises(RunFolderError, match=r"\d+ bytes do not fit the journal's header of 4 KiB"):
        writer.add_phase("x" * HEADER_BYTES)
    writer.mark(2, writer.code("data", END))
    writer.close()
    journal = read_journal(tmp_path / "j.bin")
    assert (journal.phases, len(journal.records)) == (list(PHASES), 5)


def test_records_with_a_given_time_stand_between_the_others(tmp_path: Path) -> None:
    writer = written(tmp_path / "j.bin", 1)
    writer.put(-5, 7, 2, writer.code("forward", BEGIN))
    writer.put(2**62, 2**61, 2, writer.code("forward", END))
    writer.mark(3, writer.code("data", BEGIN))
    writer.close()
    records = read_journal(tmp_path / "j.bin").records
    assert records["t_ns"][2:4].tolist() == [-5, 2**62]
    assert records["cpu_ns"][2:4].tolist() == [7, 2**61]
    assert records["step"].tolist() == [1, 1, 2, 2, 3]
    assert records["phase"].tolist() == [0, 0, 2, 2, 1]
    assert records["kind"].tolist() == [0, 1, 0, 1, 0]


def test_a_full_disk_is_an_error_that_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, full = tmp_path / "j.bin", BLOCK_BYTES // RECORD.size
    writer = written(path, full // 2)
    allocate = os.posix_fallocate

    def no_space(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    for _ in range(2):
        with pytest.raises(RunFolderError, match=f"cannot extend the journal by 1 MiB: No space.*the {full} records"):
            writer.mark(full, writer.code("step", BEGIN))
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    writer.mark(full, writer.code("step", BEGIN))
    writer.close()
    assert len(read_journal(path).records) == full + 1


def test_no_space_for_the_first_block_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES, hard))
    try:
        with pytest.raises(RunFolderError, match="cannot extend the journal by 1 MiB: File too large"):
            JournalWriter(tmp_path / "j.bin", PHASES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("write", "message"),
    [(lambda *_: 100, "the disk is full"), (None, "No space left on device")],
    ids=["half of it is written", "nothing is written"],
)
def test_no_space_for_the_header_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., int] | None, message: str
) -> None:
    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", write or no_space)
    with pytest.raises(RunFolderError, match=rf"cannot write the journal .*j\.bin: {message}"):
        JournalWriter(tmp_path / "j.bin", PHASES)


def test_everything_written_is_on_the_disk_after_a_sync(tmp_path: Path) -> None:
    writer = mapped.MappedWriter(tmp_path / "j.bin", b"PJEVENTS", {"phases": []}, RECORD.size, "journal")
    writer.buffer[writer.base : writer.base + 4] = b"data"
    writer.sync()
    assert (tmp_path / "j.bin").read_bytes()[HEADER_BYTES:][:4] == b"data"
    writer.close(1)


def test_a_writer_killed_at_any_instant_leaves_a_readable_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    code = (
        "import sys; from pathlib import Path; from perjoule.runs.journal import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]), ('step',)); print('ready', flush=True); step = 0\n"
        "while True: step += 1; writer.mark(step, 0); writer.mark(step, 1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    records = read_journal(path).records
    assert len(records) > 1000
    assert (records["step"] == np.arange(len(records)) // 2 + 1).all()
