"""Wrong input and failing machines: one clear line, an exit code that is not zero, and nothing recorded is lost."""

import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.system.forks import Forks
from tests.system.tiny import Tiny, losses, run_of

from perjoule.cli import main
from perjoule.core.labels import IGNORED
from perjoule.runs.folder import CHECKPOINTS, EVENTS, event_path
from perjoule.runs.tables import load_run


@pytest.fixture
def refuse(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> "Refuse":
    return Refuse(tiny, capsys)


class Refuse:
    """Runs a command that must fail with one line, and returns the line."""

    def __init__(self, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
        self.tiny, self.capsys = tiny, capsys

    def train(self, code: int, *overrides: str) -> str:
        return self.command(code, "train", *self.tiny.arguments(*overrides))

    def command(self, code: int, *arguments: str) -> str:
        self.capsys.readouterr()
        assert main(arguments) == code
        error = self.capsys.readouterr().err
        assert error.startswith("perjoule: ")
        assert error.endswith("\n")
        assert error.count("\n") == error.count("perjoule: ") == 1, f"more than one line: {error}"
        return error.removeprefix("perjoule: ").rstrip("\n")


def text(folder: Path, *documents: str) -> Path:
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"{number}.txt").write_text(document, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dmi=32", "model.dmi: unknown key: did you mean 'dim'?"),
        ("model.dim=wide", "model.dim: must be a number, not 'wide'"),
        ("model.dim=-32", "model.dim: must be greater than 0, not -32"),
        ("model.num_heads=3", "model.num_heads: 3 does not divide dim 32 (nearest: 1, 2, 4, 8)"),
        ("model.kind=transfromer", "model.kind: unknown models kind 'transfromer': did you mean 'transformer'?"),
        ("data.tokenizer.vocab_size=100", "data.tokenizer.vocab_size: must be at least 258 (256 bytes and 2 special"),
        ("batch.accumulation=3", "batch: size 4 must be a multiple of accumulation 3"),
        ("stop={patience: 3}", "stop: give at least one of steps, epochs, tokens, seconds"),
        (
            "stop.patience=3",
            "the recipe: stop.patience counts evaluations: give evaluate.every_steps or evaluate.every_epochs",
        ),
        ("device=tpu", "device: must be cpu, cuda, or cuda and a number, such as cuda:1"),
        ("device=cuda", "device cuda does not exist here; accepted: cpu (torch sees no CUDA device)"),
        ("device=cuda:1", "device cuda:1 does not exist here; accepted: cpu (torch sees no CUDA device)"),
        ("stop.steps", "'stop.steps' is not an override; write key=value, such as stop.steps=200"),
        (
            "model.vocab_size=100",
            "model.vocab_size 100 is smaller than the data's 320; accepted: null (the data's own)",
        ),
        ("batch.size=-3", "batch.size: must be greater than 0, not -3"),
        ("evaluate.split=tset", "evaluate.split: 'tset' is not accepted: did you mean 'test'?"),
        ("backend=fast", "backend.preset: unknown preset 'fast': accepted: auto, plain"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line(refuse: Refuse, override: str, message: str) -> None:
    line = refuse.train(2, override)
    assert message in line
    assert not refuse.tiny.runs.exists()


def test_a_missing_recipe_names_the_nearest(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text("seed: 1\n")
    line = refuse.command(2, "train", str(tmp_path / "defualt.yaml"))
    assert line.startswith(f"no recipe {tmp_path / 'defualt.yaml'}; in {tmp_path}: did you mean 'default.yaml'?")


def test_missing_data_names_the_nearest(refuse: Refuse, tmp_path: Path) -> None:
    text(tmp_path / "corpus", "words")
    assert refuse.train(6, f"data.path={tmp_path / 'corups'}") == (
        f"no file or folder {tmp_path / 'corups'}; did you mean 'corpus'?"
    )


def test_empty_data_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    assert refuse.train(6, f"data.path={text(tmp_path / 'none')}").startswith("no file with documents below the folder")
    folder = text(tmp_path / "blank", "", "")
    assert refuse.train(6, f"data.path={folder}") == f"no documents in 2 files of {folder}; skipped: 2 empty"


def test_an_unreadable_file_is_named(refuse: Refuse, tmp_path: Path) -> None:
    folder = text(tmp_path / "corpus", "words")
    (folder / "b.jsonl").symlink_to("/proc/self/mem")  # not readable from its start, not even for root
    assert refuse.train(6, f"data.path={folder}") == f"cannot read {folder / 'b.jsonl'}: Input/output error"
    (tmp_path / "x.txt").mkdir()
    assert refuse.train(6, f"data.path={tmp_path / 'x.txt'}").startswith("no file with documents below the folder")


def test_null_and_binary_cells_are_left_out_and_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = ['{"text": null}', '{"text": "' + "some words of text " * 200 + '"}', '{"text": ""}', '{"text": 5}', "{}"]
    (tmp_path / "rows.jsonl").write_bytes("\n".join(rows).encode() + b'\n{"text": "\xff\xfe"}\n')
    run = run_of(
        tiny.train(f"data.path={tmp_path / 'rows.jsonl'}", "data.fractions={train: 1, validation: 0, test: 0}")
    )
    skipped = load_run(run).fact("data", "facts")["skipped_documents"]
    assert skipped == {"null": 2, "empty": 1, "not_text": 1, "not_utf8": 1}


def test_a_binary_file_is_no_document(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(bytes(range(256)) * 10)
    line = refuse.train(6, f"data.path={tmp_path / 'image.txt'}")
    assert line == f"no documents in 1 files of {tmp_path}; skipped: 1 not_text"


def test_a_text_shorter_than_a_row_says_what_fits(refuse: Refuse, tmp_path: Path) -> None:
    folder = text(tmp_path / "short", "few words")
    line = refuse.train(
        6, f"data.path={folder}", "data.seq_len=512", "data.fractions={train: 1, validation: 0, test: 0}"
    )
    assert re.fullmatch(
        r"the train split \(data\.fractions\.train=1\): \d+ tokens are too few for one row of seq_len=512 \+ 1: "
        r"seq_len of at most \d+ fits",
        line,
    )


def test_runs_that_cannot_be_written_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    assert refuse.train(5, "runs=/proc/perjoule", "name=a") == (
        "cannot create the run folder /proc/perjoule/a: No such file or directory"
    )
    (tmp_path / "file").write_text("in the way")
    assert refuse.train(5, f"runs={tmp_path / 'file'}", "name=a") == (
        f"cannot create the run folder {tmp_path / 'file' / 'a'}: Not a directory"
    )


def test_a_run_folder_that_exists_is_not_touched(refuse: Refuse) -> None:
    before = losses(run_of(refuse.tiny.train("name=mine")))
    line = refuse.train(5, "name=mine", "seed=1")
    run = refuse.tiny.runs / "mine"
    assert line == (
        f"the run folder {run} exists already: continue it with `perjoule train --resume {run}`, "
        "or choose another with name=… or runs=…"
    )
    assert losses(run) == before


def test_a_run_that_is_being_written_cannot_be_resumed(refuse: Refuse, forks: Forks, tmp_path: Path) -> None:
    run = refuse.tiny.runs / "busy"
    process = forks.start(["train", *refuse.tiny.arguments("name=busy", "stop.steps=100000")], tmp_path / "output")
    process.wait_for(lambda: (run / "metrics.jsonl").exists())
    line = refuse.command(5, "train", "--resume", str(run))
    assert line == f"{run} is being written by process {process.pid}; wait for it or stop it"
    process.send(signal.SIGKILL)
    process.end()


def test_a_folder_that_is_no_run_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    no_run = f"{tmp_path} is not a run folder: it has no manifest.json"
    assert refuse.command(5, "report", str(tmp_path)) == no_run
    assert refuse.command(5, "train", "--resume", str(tmp_path)) == no_run
    missing = tmp_path / "missing"
    assert refuse.command(5, "report", str(missing)) == f"no run folder {missing}"
    assert refuse.command(5, "ls", "runs", str(missing)) == f"no folder {missing}: give the folder that holds the runs"


def test_a_pickle_is_never_loaded(refuse: Refuse, tmp_path: Path) -> None:
    refusal = "is a pickle (torch.save), and reading one runs any code in it: convert it to .safetensors"
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    assert refuse.train(7, f"initial_weights={tmp_path / 'model.pt'}") == f"{tmp_path / 'model.pt'} {refusal}"
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    assert refuse.train(7, f"initial_weights={tmp_path / 'old.pt'}") == f"{tmp_path / 'old.pt'} {refusal}"
    assert not refuse.tiny.runs.exists()


def test_a_pickle_in_the_place_of_a_checkpoint_is_never_loaded(refuse: Refuse) -> None:
    run = run_of(refuse.tiny.train())
    folder = run / CHECKPOINTS / "00000005"
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")
    line = refuse.command(7, "train", "--resume", str(run), "stop.steps=9")
    assert line == f"all 1 checkpoints in {run / CHECKPOINTS} are damaged; start the run anew"
    # Even with checksums that fit.
    names = [path.name for path in folder.iterdir() if path.name != "SHA256SUMS"]
    sums = subprocess.run(["sha256sum", *sorted(names)], cwd=folder, capture_output=True, text=True, check=True)
    (folder / "SHA256SUMS").write_text(sums.stdout)
    assert "is a pickle (torch.save)" in refuse.command(7, "train", "--resume", str(run), "stop.steps=9")


def test_weights_that_do_not_fit_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    file = run_of(refuse.tiny.train()) / CHECKPOINTS / "00000005" / "model.safetensors"
    assert "has another shape" in refuse.train(7, f"initial_weights={file}", "model.dim=64")
    (tmp_path / "text.safetensors").write_text("words")
    assert "is not a safetensors file" in refuse.train(7, f"initial_weights={tmp_path / 'text.safetensors'}")
    missing = tmp_path / "missing.safetensors"
    assert refuse.train(7, f"initial_weights={missing}") == f"cannot read {missing}: No such file or directory"


def test_a_batch_with_every_label_ignored_is_named_by_its_step(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    from perjoule.data.contract import Batch
    from perjoule.data.reader import PackedSamples

    read = PackedSamples.batch

    def masked(samples: PackedSamples, start: int, rows: int) -> Batch:
        batch = read(samples, start, rows)
        if start < 8:
            return batch
        labels = torch.full_like(batch.tensors["labels"], IGNORED)
        return Batch({**batch.tensors, "labels": labels}, batch.num_samples, batch.num_tokens, 0)

    monkeypatch.setattr(PackedSamples, "batch", masked)
    without = "data.fractions={train: 1, validation: 0, test: 0}"
    line = refuse.train(6, "name=masked", without)
    assert line == "step 3: every label of the batch is ignored; nothing to learn from"
    run = load_run(refuse.tiny.runs / "masked")
    assert (run.status, run.reason, len(run.steps)) == ("failed", line, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_checkpoints_before_stay(refuse: Refuse, small_disk: Path) -> None:
    # The journal takes 1 MiB, a checkpoint about 0.5 MB: there is no room for the third.
    line = refuse.train(5, f"runs={small_disk}", "name=full", "checkpoint={every_steps: 1, keep: 9}", "stop.steps=50")
    assert "No space left on device" in line or line.endswith("the disk is full")
    run = load_run(small_disk / "full")
    assert run.status in ("failed", "interrupted")
    assert len(run.steps) >= 1
    assert run.segments[0].phases is not None
    steps = [one.step for one in run.checkpoints]
    assert steps == list(range(1, len(steps) + 1)) != []
    moved = Path(shutil.copytree(small_disk / "full", refuse.tiny.runs / "moved"))
    assert main(["train", "--resume", str(moved), "stop.steps=5", f"runs={refuse.tiny.runs}"]) == 0
    assert losses(moved) == refuse.tiny.losses_of()


def test_a_disk_without_room_for_the_journal_is_one_line(refuse: Refuse, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1_200_000))
    line = refuse.train(5, f"runs={small_disk}", "name=full")
    assert line == (
        f"{event_path(small_disk / 'full', 0, 0)}: cannot extend the journal by 1 MiB: No space left on device; "
        "the 0 records before are kept"
    )


def test_a_limit_on_the_size_of_files_is_one_line(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    """As on a full disk: the checkpoint cannot be written, what was recorded stays."""
    arguments = ["train", *tiny.arguments("name=small")]
    ended = forks.start(arguments, tmp_path / "output", largest_file_bytes=1_060_000).end()
    assert ended.code == 0, ended.err
    arguments = ["train", *tiny.arguments("name=large", "model.dim=256")]
    ended = forks.start(arguments, tmp_path / "output", largest_file_bytes=1_060_000).end()
    run = load_run(tiny.runs / "large")
    assert ended.code == 5
    assert ended.err.startswith(f"perjoule: cannot write the checkpoint {run.path / CHECKPOINTS / '00000005'}: ")
    assert "File too large" in ended.err
    assert ended.err.count("\n") == 1
    assert (run.status, len(run.steps)) == ("failed", 5)
    assert list((run.path / CHECKPOINTS).glob("0*")) == []
    assert len(list((run.path / EVENTS).iterdir())) == 1


def test_debug_shows_the_traceback(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    ended = forks.start(["train", "--debug", *tiny.arguments("model.dim=0")], tmp_path / "output").end()
    assert ended.code == 1
    assert "Traceback (most recent call last)" in ended.err
    assert "perjoule.core.errors.ConfigError: model.dim: must be greater than 0, not 0" in ended.err
