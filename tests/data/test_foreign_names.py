"""Names and manifests of foreign origin: nothing leads out of its folder, and what is damaged is one line."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perjoule.core.errors import DataError
from perjoule.data import engine_dask, hub
from perjoule.data.download import DownloadConfig, download
from perjoule.data.engine_dask import check_submission
from perjoule.data.manifest import MANIFEST, checksum, read_manifest
from perjoule.data.splitting import SplitConfig, split
from perjoule.data.store import open_store
from perjoule.data.tokenize import TokenizeConfig, tokenize_files
from perjoule.data.tokenizer import TokenizerConfig


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(80):
        (folder / f"{number}.txt").write_text(f"document {number}")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "t.json"
    path.write_text(TokenizerConfig(vocab_size=260).build(["a"]).inner.to_str())
    return path


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    "name", ["../evil.parquet", "/tmp/evil.parquet", "a/../../evil.txt", "a\\..\\evil.txt", "C:/e.txt"]
)
def test_hub_cannot_write_beside_the_folder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sibling = SimpleNamespace(rfilename=name, lfs=None, size=1, blob_id="x")
    info = SimpleNamespace(siblings=[sibling], sha="0" * 40)
    library = hub._library()

    class Api:
        def __init__(self, **_: object) -> None:
            pass

        def dataset_info(self, *_: object, **__: object) -> object:
            return info

    monkeypatch.setattr(library, "HfApi", Api)
    with pytest.raises(DataError, match="cannot be accepted: the name"):
        hub.list_data_set("a/b", "main", (), 1.0)


@pytest.mark.parametrize("name", ["../kept.parquet", "/etc/kept.parquet", 7])
def test_record_of_provenance_cannot_name_files_elsewhere(tmp_path: Path, corpus: Path, name: object) -> None:
    target = tmp_path / "out"
    download(str(corpus), target, DownloadConfig(), quiet)
    record = json.loads((target / "provenance.json").read_text())
    next(iter(record["sources"].values()))["files"][0]["file"] = name
    (target / "provenance.json").write_text(json.dumps(record))
    (tmp_path / "kept.parquet").write_text("ours")
    with pytest.raises(DataError, match=r"provenance\.json is damaged"):
        download(str(corpus), target, DownloadConfig(), quiet)
    assert (tmp_path / "kept.parquet").exists()


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda body: body["splits"]["train"]["shards"][0].update(name="../train-00000"),
    lambda body: body["splits"]["train"]["shards"][0].update(tokens=-1),
    lambda body: body["splits"]["train"]["shards"][0].update(tokens="x"),
    lambda body: body["splits"]["train"].update(shards="x"),
    lambda body: body.update(splits="x"),
    lambda body: body.update(splits={}),
    lambda body: body.update(units=[7]),
    lambda body: body.update(dtype="O"),
    lambda body: body.pop("units"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_manifest_of_a_store_is_checked_beyond_its_checksum(
    tmp_path: Path, corpus: Path, tokenizer: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    store = tmp_path / "store"
    tokenize_files(corpus, store, TokenizeConfig(tokenizer=tokenizer), quiet)
    body = json.loads((store / MANIFEST).read_text())
    body.pop("checksum")
    change(body)
    (store / MANIFEST).write_text(json.dumps({"checksum": checksum(body), **body}))
    with pytest.raises(DataError, match=r"manifest\.json is not that of a store"):
        read_manifest(store)
    with pytest.raises(DataError, match="damaged") as caught:
        open_store(store)
    assert "\n" not in str(caught.value)


def test_no_other_folder_is_taken_for_a_damaged_store_or_written_over(
    tmp_path: Path, corpus: Path, tokenizer: Path
) -> None:
    divided = tmp_path / "split"
    split(corpus, divided, SplitConfig(), quiet)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / MANIFEST).write_text('{"name": "app"}')
    for folder, what in ((divided, "a folder that perjoule data split made"), (foreign, "another program's")):
        before = (folder / MANIFEST).read_bytes()
        for again in (False, True):
            with pytest.raises(DataError, match=f"{what}.*choose another folder"):
                tokenize_files(corpus, folder, TokenizeConfig(tokenizer=tokenizer, again=again), quiet)
        with pytest.raises(DataError, match=f"{what}.*not a token store"):
            open_store(folder)
        assert (folder / MANIFEST).read_bytes() == before
    for here, there in ((divided, divided), (divided, divided / "store"), (divided, tmp_path)):
        with pytest.raises(DataError, match="lies in the folder of the documents"):
            tokenize_files(here, there, TokenizeConfig(tokenizer=tokenizer, again=True), quiet)


@pytest.mark.parametrize("content", ['{"identity": 1, "splits": "x"}', '{"splits": {}}', "[]", "{"])
def test_damaged_manifest_of_a_split_is_one_line(tmp_path: Path, corpus: Path, content: str) -> None:
    divided = tmp_path / "split"
    split(corpus, divided, SplitConfig(), quiet)
    manifest = json.loads((divided / MANIFEST).read_text())
    if content.startswith('{"'):
        content = json.dumps({**manifest, **json.loads(content), "identity": manifest["identity"]})
    (divided / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged") as caught:
        split(corpus, divided, SplitConfig(), quiet)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "there is no sbatch on PATH"),
        ("echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exec /bin/sleep 60", "does not answer"),
        ("exit 0", None),
    ],
)
def test_slurm_that_takes_no_jobs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str | None
) -> None:
    monkeypatch.setattr(engine_dask, "_ANSWER_S", 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    if message is None:
        check_submission("#!/bin/sh\n")
        return
    with pytest.raises(DataError, match=message) as caught:
        check_submission("#!/bin/sh\n")
    assert "\n" not in str(caught.value)
