"""Text data sets from recipe to batches."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import DataSet
from perjoule.data.sets.text import TextDataSet, TextFilesConfig
from perjoule.data.split import SPLITS

SETTINGS: Mapping[str, Any] = {
    "seq_len": 16,
    "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
    "tokenizer": {"vocab_size": 280},
}


def built(corpus: Path, seed: int = 0, **settings: Any) -> TextDataSet:
    return TextFilesConfig(path=corpus, **{**SETTINGS, **settings}).build(seed)


def test_recipe_section_builds_a_data_set(corpus: Path) -> None:
    config = build_component(Component(data.SHELF), {"kind": "text", "path": str(corpus), **SETTINGS})
    assert isinstance(config, TextFilesConfig)
    assert next(iter(TextFilesConfig.model_fields)) == "kind"
    data_set: DataSet = config.build(0)
    assert data_set.shape == {"vocab_size": 280, "seq_len": 16}
    batch = data_set.split("train").batch(0, 4)
    assert set(batch.tensors) == {"input_ids", "labels"}
    assert batch.tensors["input_ids"].shape == batch.tensors["labels"].shape == (4, 16)


def test_config_survives_its_own_dump(corpus: Path) -> None:
    config = TextFilesConfig(path=corpus, **SETTINGS)
    assert TextFilesConfig(**json.loads(config.model_dump_json())) == config


def test_wrong_settings_are_refused_before_anything_is_read(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"batching: 'paked' is not accepted: did you mean 'packed'\?"):
        build_component(Component(data.SHELF), {"kind": "text", "path": str(corpus), "batching": "paked"})
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: must be at least 258"):
        build_component(Component(data.SHELF), {"kind": "text", "path": str(corpus), "tokenizer": {"vocab_size": 9}})
    with pytest.raises(ValidationError, match="greater than 0"):
        TextFilesConfig(path=corpus, seq_len=0)


def test_seed_orders_training_and_leaves_the_held_out_splits_alone(corpus: Path) -> None:
    one, two, plain = built(corpus, seed=1), built(corpus, seed=2), built(corpus, shuffle=False)

    def inputs(data_set: TextDataSet, split: str) -> torch.Tensor:
        samples = data_set.split(split)
        return samples.batch(0, samples.num_samples).tensors["input_ids"]

    assert not torch.equal(inputs(one, "train"), inputs(two, "train"))
    assert not torch.equal(inputs(one, "train"), inputs(plain, "train"))
    assert torch.equal(inputs(one, "train"), inputs(built(corpus, seed=1), "train"))
    for split in ("validation", "test"):
        assert torch.equal(inputs(one, split), inputs(two, split))
        assert torch.equal(inputs(one, split), inputs(plain, split))


def test_packed_stream_reads_back_as_the_documents(corpus: Path) -> None:
    data_set = built(corpus, shuffle=False)
    samples = data_set.split("validation")
    ids = samples.batch(0, samples.num_samples).tensors["input_ids"].flatten().tolist()
    fractions = TextFilesConfig(path=corpus, **SETTINGS).fractions
    held_out = [path for path in sorted(corpus.iterdir()) if fractions.split_of(path.name) == "validation"]
    assert len(held_out) > 2
    assert "".join(path.read_text() for path in held_out).startswith(data_set.tokenizer.decode(ids))


def test_documents_of_a_divided_folder_stay_in_their_splits(corpus: Path, tmp_path: Path) -> None:
    divided = tmp_path / "divided"
    for number, path in enumerate(sorted(corpus.iterdir())):
        folder = divided / ("validation" if number % 4 == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    data_set = built(divided)
    assert [data_set.facts["splits"][name]["documents"] for name in SPLITS] == [30, 10, 0]
    with pytest.raises(DataError, match=rf"^the test split \(of {divided}\) has no documents"):
        data_set.split("test")


def test_masked_documents_are_numbered_and_the_facts_say_so(corpus: Path) -> None:
    data_set, plain = built(corpus, mask_documents=True), built(corpus)
    batch, same = (one.split("train").batch(0, 200) for one in (data_set, plain))
    assert set(batch.tensors) == {"input_ids", "labels", "documents"}
    assert torch.equal(batch.tensors["labels"], same.tensors["labels"])
    bos = batch.tensors["input_ids"] == data_set.tokenizer.bos_id
    assert int(batch.tensors["documents"].max()) == int(bos[:, 1:].sum(1).max()) > 0
    assert data_set.facts["documents_masked"]
    assert not plain.facts["documents_masked"]
    section = {"kind": "text", "path": str(corpus), "batching": "padded", "mask_documents": True}
    with pytest.raises(ConfigError, match="mask_documents: needs batching=packed: a padded row has one document"):
        build_component(Component(data.SHELF), section)


def test_padded_batches_hold_one_document_a_row(corpus: Path) -> None:
    data_set = built(corpus, batching="padded", long_documents="truncate", shuffle=False, seq_len=512)
    samples = data_set.split("test")
    batch = samples.batch(0, samples.num_samples)
    fractions = TextFilesConfig(path=corpus, **SETTINGS).fractions
    held_out = [path.read_text() for path in sorted(corpus.iterdir()) if fractions.split_of(path.name) == "test"]
    assert samples.num_samples == len(held_out)
    for labels, text in zip(batch.tensors["labels"], held_out, strict=True):
        kept = labels[labels != IGNORED].tolist()
        assert text.startswith(data_set.tokenizer.decode(kept))
        assert len(kept) == 512 or data_set.tokenizer.decode(kept) == text


def test_facts_are_json_and_agree_with_the_batches(corpus: Path) -> None:
    (corpus / "bad.txt").write_bytes(b"\xff\xfa")
    for batching in ("packed", "padded"):
        data_set = built(corpus, batching=batching)
        facts = json.loads(json.dumps(data_set.facts))
        assert facts["kind"] == "text"
        assert facts["path"] == str(corpus)
        assert facts["skipped_documents"] == {"not_utf8": 1}
        assert facts["rows_mix_documents"] == (batching == "packed")
        assert facts["tokenizer"] == {"hash": data_set.tokenizer.content_hash, "vocab_size": 280}
        assert Path(facts["store"]["path"]).is_dir()
        assert sum(facts["splits"][name]["documents"] for name in SPLITS) == 40
        assert sum(facts["splits"][name]["bytes"] for name in SPLITS) == sum(
            path.stat().st_size for path in corpus.glob("[0-9]*.txt")
        )
        for name in SPLITS:
            samples, split = data_set.split(name), facts["splits"][name]
            labels = samples.batch(0, samples.num_samples).tensors["labels"]
            assert split["ignored_fraction"] == pytest.approx(float((labels == IGNORED).double().mean()))
            assert split["num_useful"] == int((labels != IGNORED).sum())
            assert split["tokens_per_byte"] * split["bytes"] == pytest.approx(split["tokens"] - split["documents"])


def test_sequence_length_and_batching_share_one_store(corpus: Path) -> None:
    paths = {
        built(corpus, **settings).facts["store"]["path"] for settings in ({}, {"seq_len": 9}, {"batching": "padded"})
    }
    assert len(paths) == 1


def test_tokens_go_to_the_configured_cache(corpus: Path, cache: Path) -> None:
    data_set = built(corpus, cache=cache)
    assert Path(data_set.facts["store"]["path"]).parent == cache
    assert data_set.facts["store"]["state"] == "built"


def test_split_that_is_too_short_says_what_would_fit(corpus: Path) -> None:
    message = (
        r"the train split \(data\.fractions\.train=0\.6\): \d+ tokens are too few for one row of seq_len=99999 \+ 1"
    )
    with pytest.raises(DataError, match=message):
        built(corpus, seq_len=99999)
    data_set = built(corpus, fractions={"train": 1.0, "validation": 0, "test": 0})
    message = r"the validation split \(data\.fractions\.validation=0\) has no documents"
    with pytest.raises(DataError, match=message):
        data_set.split("validation")
    facts = data_set.facts["splits"]["validation"]
    assert facts == {"documents": 0, "bytes": 0, "tokens": 0, "unavailable": facts["unavailable"]}
    assert "has no documents" in facts["unavailable"]


def test_unknown_split_names_the_nearest(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'validaton': did you mean 'validation'\?"):
        built(corpus).split("validaton")
