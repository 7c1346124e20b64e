"""A token store is the same however it was made, goes on after what stopped it, and refuses what does not fit."""

import fcntl
import json
import os
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perjoule.config import resolve
from perjoule.core.errors import ConfigError, DataError
from perjoule.data import engines, tokenize_unit
from perjoule.data.engine import CannotWrite, run_here, run_pool
from perjoule.data.manifest import Damaged
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.store import open_store
from perjoule.data.tokenize import OtherStore, TokenizeConfig, Tokenized, tokenize_files
from perjoule.data.tokenize_unit import UnitJob
from perjoule.data.tokenizer import TokenizerConfig

WORDS = "the quick brown fox jumps over lazy dogs while wizards boil größer quartz in a vat of pure joules".split()
NUM_FILES = 5
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file a unit of its own."""
    monkeypatch.setattr(tokenize_unit, "_SMALLEST_UNIT_BYTES", 1)


def text(number: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(5 + number % 30))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five files of JSON lines with forty documents each, and one that is null."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for file in range(NUM_FILES):
        lines = [{"text": f"{file} {text(file * 40 + number)}"} for number in range(40)]
        content = "\n".join(map(json.dumps, [*lines, {"text": None}]))
        (folder / f"{file}.jsonl").write_text(content + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(TokenizerConfig(vocab_size=300).build(map(text, range(100))).inner.to_str(), encoding="utf-8")
    return path


def run(rows: Path, out: Path, tokenizer: Path, *overrides: str, said: list[str] | None = None) -> Tokenized:
    words = [f"tokenizer={tokenizer}", "fractions={train: 0.6, validation: 0.2, test: 0.2}", "workers=0", *overrides]
    config = resolve.load(TokenizeConfig, None, words).config
    return tokenize_files(rows, out, config, (said if said is not None else []).append)


def files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def whole(rows: Path, tmp_path: Path, tokenizer: Path) -> Path:
    """A complete store."""
    run(rows, tmp_path / "whole", tokenizer)
    return tmp_path / "whole"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_store_holds_every_document_of_its_split_in_order(whole: Path, rows: Path) -> None:
    store = open_store(whole)
    fractions = Fractions(train=0.6, validation=0.2, test=0.2)
    expected: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in sorted(rows.iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)["text"]
            if document is not None:
                expected[fractions.split_of(document)].append(document)
    for split in SPLITS:
        found = []
        for shard in store.splits[split].shards:
            for begin, end in zip(shard.offsets[:-1], shard.offsets[1:], strict=True):
                assert shard.tokens[begin] == store.tokenizer.bos_id
                found.append(store.tokenizer.decode(shard.tokens[begin + 1 : end].tolist()))
        assert found == expected[split]
        assert store.splits[split].num_bytes == sum(len(document.encode()) for document in expected[split])
    assert dict(store.skipped) == {"null": NUM_FILES}
    assert store.state == "opened"
    assert sorted(path.name for path in whole.iterdir() if path.name.startswith("train"))[:2] == [
        "train-00000.offsets.bin",
        "train-00000.tokens.bin",
    ]
    assert not (whole / ".unfinished").exists()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_processes_writes_the_same_bytes(
    workers: int, whole: Path, rows: Path, tmp_path: Path, tokenizer: Path
) -> None:
    run(rows, tmp_path / "other", tokenizer, f"workers={workers}")
    assert files(tmp_path / "other") == files(whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_writes_the_same_bytes(whole: Path, rows: Path, tmp_path: Path, tokenizer: Path) -> None:
    options = ["engine=dask", "scheduler=local", "workers=2", "cluster={host: 127.0.0.1}"]
    run(rows, tmp_path / "other", tokenizer, *options)
    assert files(tmp_path / "other") == files(whole)


def test_threads_and_batches_change_nothing(
    whole: Path, rows: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_unit, "_BATCH_CHARACTERS", 100)
    monkeypatch.setattr(engines, "num_cores", lambda: 4)
    run(rows, tmp_path / "other", tokenizer)
    assert files(tmp_path / "other") == files(whole)


def test_tokenizers_alone_write_the_same_tokens_and_the_manifest_says_who_did(
    whole: Path, rows: Path, tmp_path: Path, tokenizer: Path
) -> None:
    said: list[str] = []
    slow = run(rows, tmp_path / "other", tokenizer, "encoder=tokenizers", said=said)
    assert slow.manifest.encoded == {"tokenizers": NUM_FILES * 40}
    assert "encoded: 200 by tokenizers" in said
    compared = run(rows, tmp_path / "compared", tokenizer, "compare=1", said=said)
    assert compared.manifest.encoded == {"compared": NUM_FILES * 40, "tiktoken": NUM_FILES * 40}
    assert "encoded: 200 by tiktoken, 200 by both and compared" in said
    for folder in (tmp_path / "other", tmp_path / "compared"):
        for name, content in files(whole).items():
            assert name == "manifest.json" or (folder / name).read_bytes() == content


def test_tokenizer_that_tiktoken_cannot_stand_in_for_says_why(rows: Path, tmp_path: Path, tokenizer: Path) -> None:
    said: list[str] = []
    nfc = tmp_path / "nfc.json"
    nfc.write_text(json.dumps({**json.loads(tokenizer.read_text(encoding="utf-8")), "normalizer": {"type": "NFC"}}))
    run(rows, tmp_path / "store", nfc, said=said)
    assert said[-1] == "tiktoken, which is faster, was not used: text is normalised (NFC)"


def test_large_shards_are_cut_after_a_batch_and_keep_their_order(
    whole: Path, rows: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_unit, "_BATCH_CHARACTERS", 500)
    run(rows, tmp_path / "cut", tokenizer, "shard_tokens=200")
    cut, one = open_store(tmp_path / "cut"), open_store(whole)
    names = [entry.name for entry in cut.manifest.shards["train"]]
    assert {"train-00000", "train-00000_001", "train-00004"} <= set(names)
    by_name = sorted(path.name for path in (tmp_path / "cut").glob("train*.tokens.bin"))
    assert by_name == [f"{name}.tokens.bin" for name in names]
    for split in SPLITS:
        assert np.array_equal(cut.splits[split].stream(), one.splits[split].stream())


def test_corpus_that_is_split_keeps_its_splits(tmp_path: Path, tokenizer: Path) -> None:
    for split, number in (("train", 1), ("validation", 2), ("test", 3)):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        (tmp_path / "corpus" / split / "a.txt").write_text(text(number))
    done = run(tmp_path / "corpus", tmp_path / "store", tokenizer)
    store = open_store(tmp_path / "store")
    for split, number in (("train", 1), ("validation", 2), ("test", 3)):
        assert store.tokenizer.decode(store.splits[split].stream().tolist()) == text(number)
    assert done.manifest.made_from["fractions"] == "of the corpus"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will hold the numbers of the units that are worked on."""
    numbers: list[int] = []

    def count(work: Any, jobs: Sequence[UnitJob], *others: Any) -> None:
        numbers.extend(job.number for job in jobs)
        run_here(work, jobs, *others)

    monkeypatch.setattr(engines, "run_here", count)
    return numbers


def test_complete_store_is_checked_and_left(
    whole: Path, rows: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, before = counted(monkeypatch), files(whole)
    said: list[str] = []
    assert run(rows, whole, tokenizer, said=said).state == "reused"
    assert numbers == []
    assert files(whole) == before
    assert re.search(r"train: \d+ documents, [\d,]+ tokens, .* of text, 5 shards", "\n".join(said))
    assert "skipped: 5 null" in said
    assert f"reused: {whole}" in said


@pytest.fixture
def unfinished(rows: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose third unit failed."""
    real = tokenize_unit.TokenizeUnit.__call__

    def fail_third(self: Any, job: UnitJob, *others: Any) -> None:
        if job.number == 2:
            raise OSError(28, "No space left on device", "/a/shard")
        real(self, job, *others)

    with monkeypatch.context() as patch:
        patch.setattr(tokenize_unit.TokenizeUnit, "__call__", fail_third)
        with pytest.raises(CannotWrite, match=r"/a/shard: No space left on device; finished work is kept"):
            run(rows, tmp_path / "unfinished", tokenizer)
    return tmp_path / "unfinished"


def test_run_that_stopped_is_gone_on_with(
    unfinished: Path, whole: Path, rows: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"no token store at .*: it is unfinished, perjoule data tokenize goes on"):
        open_store(unfinished)
    numbers, said = counted(monkeypatch), list[str]()
    (unfinished / ".unfinished" / "train-00002.tokens.bin.host.1").write_text("half a shard")
    assert run(rows, unfinished, tokenizer, said=said).state == "continued"
    assert numbers == [2, 3, 4]
    assert "2 of 5 units are there already" in said
    assert files(unfinished) == files(whole)


def test_finished_shard_that_was_damaged_meanwhile_is_made_again(
    unfinished: Path, whole: Path, rows: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(unfinished / "train-00001.tokens.bin")
    (unfinished / ".unfinished" / "00000.json").write_text("{")
    numbers, said = counted(monkeypatch), list[str]()
    run(rows, unfinished, tokenizer, said=said)
    assert numbers == [0, 1, 2, 3, 4]
    assert "train-00001.tokens.bin was changed: 1.jsonl is tokenized again" in said
    assert files(unfinished) == files(whole)


def test_full_disk_in_a_shard_is_one_line_and_keeps_what_is_finished(
    whole: Path, rows: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows / "3.jsonl").write_text((rows / "3.jsonl").read_text(encoding="utf-8") * 40, encoding="utf-8")
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))  # as a full disk, but only for this process
    try:
        with pytest.raises(
            CannotWrite, match=r"cannot write .*train-00003\.tokens\.bin.*: File too large; finished work is kept"
        ):
            run(rows, out, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((out / ".unfinished").glob("*.bin.*"))
    numbers = counted(monkeypatch)
    run(rows, out, tokenizer)
    assert numbers == [3, 4]
    run(rows, tmp_path / "again", tokenizer)
    assert files(out) == files(tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-00001.tokens.bin", flip, r"train-00001\.tokens\.bin was changed"),
        ("test-00003.offsets.bin", Path.unlink, r"test-00003\.offsets\.bin: No such file or directory"),
        ("tokenizer.json", flip, r"tokenizer\.json was changed"),
        ("manifest.json", flip, r"manifest\.json (cannot be read|was changed)"),
    ],
)
def test_damaged_store_names_the_file_and_is_repaired_only_on_demand(
    name: str,
    damage: Callable[[Path], object],
    reason: str,
    whole: Path,
    rows: Path,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = files(whole)
    damage(whole / name)
    with pytest.raises(Damaged, match=rf"is damaged \({reason}.*\); again=true makes"):
        run(rows, whole, tokenizer)
    with pytest.raises(Damaged, match=rf"the token store .* is damaged \({reason}.*again=true"):
        open_store(whole)
    numbers = counted(monkeypatch)
    assert run(rows, whole, tokenizer, "again=true").state == "repaired"
    expected = {"train-00001.tokens.bin": [1], "test-00003.offsets.bin": [3], "tokenizer.json": []}
    assert numbers == expected.get(name, [0, 1, 2, 3, 4])
    assert files(whole) == before


def test_folder_with_something_else_is_refused(
    whole: Path, unfinished: Path, rows: Path, tmp_path: Path, tokenizer: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(TokenizerConfig(vocab_size=280).build(map(text, range(50))).inner.to_str(), encoding="utf-8")
    for folder, holds in ((whole, "holds tokens"), (unfinished, "holds an unfinished store")):
        with pytest.raises(OtherStore, match=rf"{folder} {holds} made from other tokenizer; choose another folder"):
            run(rows, folder, other)
        with pytest.raises(OtherStore, match=rf"{holds} made from other fractions and shard_tokens"):
            run(rows, folder, tokenizer, "fractions={train: 0.8, validation: 0.1, test: 0.1}", "shard_tokens=7")
    (rows / "new.txt").write_text("one more")
    with pytest.raises(OtherStore, match="holds tokens made from other documents"):
        run(rows, whole, tokenizer)
    with pytest.raises(DataError, match=r"lies in the folder of the documents, .*; choose another"):
        run(rows, rows, tokenizer)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("a")
    with pytest.raises(DataError, match=r"notes holds other files \(a\.md\); choose a"):
        run(rows, notes, tokenizer)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "has format 3, this perjoule reads up to 2: upgrade"),
        (1, "has format 1, perjoule reads 2: tokenize again"),
    ],
)
def test_store_of_another_format_is_refused(
    version: int, message: str, whole: Path, rows: Path, tokenizer: Path
) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    (whole / "manifest.json").write_text(json.dumps({**manifest, "format": version}))
    for use in (lambda: open_store(whole), lambda: run(rows, whole, tokenizer, "again=true")):
        with pytest.raises(DataError, match=message):
            use()


def test_where_no_store_is_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no token store at .*nowhere: it does not exist"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no token store at .*: it has no manifest\.json"):
        open_store(tmp_path)


def test_two_commands_may_not_write_one_folder(rows: Path, tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=r"another process is writing .*out; wait for it or choose another folder"):
        run(rows, tmp_path / "out", tokenizer)
    os.close(handle)
    assert run(rows, tmp_path / "out", tokenizer).state == "built"


def test_folder_that_cannot_be_made_is_one_line(rows: Path, tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWrite, match=r"cannot write .*/file/out: Not a directory"):
        run(rows, tmp_path / "file" / "out", tokenizer)


def test_documents_may_be_known_by_their_files_times(rows: Path, tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"
    run(rows, out, tokenizer, "hash_documents=false")
    assert run(rows, out, tokenizer, "hash_documents=false").state == "reused"
    os.utime(rows / "1.jsonl", (1, 1))
    with pytest.raises(OtherStore, match="holds tokens made from other documents"):
        run(rows, out, tokenizer, "hash_documents=false")
    (rows / "2.jsonl").unlink()
    (rows / "2.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"cannot read .*2\.jsonl: No such file or directory"):
        run(rows, out, tokenizer, "hash_documents=false")


def test_tokenizer_is_needed_and_may_not_change_meanwhile(
    rows: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"tokenize needs tokenizer=FILE\.json"):
        tokenize_files(rows, tmp_path / "out", TokenizeConfig(), print)

    def change(work: Any, *others: Any) -> None:
        path = work.out / "tokenizer.json"
        path.write_text(path.read_text().replace("<|pad|>", "<|PAD|>"))
        run_pool(work, *others)

    monkeypatch.setattr(engines, "run_pool", change)
    with pytest.raises(DataError, match=r"out/tokenizer\.json was changed while it was in use; start again"):
        run(rows, tmp_path / "out", tokenizer, "workers=1")


def test_format_can_be_read_as_documented(whole: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "token_store.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace('"store"', repr(str(whole))), names)
    store = open_store(whole)
    assert names["document"].tolist() == store.splits["train"].stream()[-len(names["document"]) :].tolist()
    assert set(re.findall(r"`([a-z_0-9]+)`", guide)) >= set(names["manifest"]), "every key is explained"
