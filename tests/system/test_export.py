"""Train, export, load with transformers alone: the same tokens as from the run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.system.tiny import SEQ_LEN, Tiny, run_of
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline
from transformers.utils import logging

import perjoule
from perjoule.cli import main
from perjoule.core.errors import ConfigError
from perjoule.evaluate.trained import Trained, load_trained
from perjoule.export import ExportConfig, export
from perjoule.models.ebt_denoiser import EBTDenoiserConfig
from perjoule.runs import checkpoints
from perjoule.runs.folder import CHECKPOINTS, TOKENIZER

KINDS = ("retnet", "longnet", "ebt", "transformer")
FILES = {  # beside the copies of our modules
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_perjoule.py",
    "tokenizer.json",
    "tokenizer_config.json",
}
PROMPTS = ["the quick", "lazy dogs while seven", "a"]
TRICKY = "the <|bos|> fox , in a vat .\n\n ünïcode <|pad|>  "


@pytest.fixture(autouse=True)
def no_progress_bar() -> Iterator[None]:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    yield
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def loaded(folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer as a stranger gets them."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def written_by_run(run: Path, prompts: list[str], new: int) -> list[list[int]]:
    """Write greedily with the run's own tokenizer and decoder, one prompt at a time."""
    trained, rows = load_trained(run), []
    for prompt in prompts:
        row: list[int] = []
        ids = torch.tensor([[trained.tokenizer.bos_id, *trained.tokenizer.encode(prompt)]])
        logits, cache = trained.decoder.prefill(ids)
        while len(row) < new:
            token = logits.argmax(-1)
            row.append(int(token))
            logits, cache = trained.decoder.decode(token, cache)
        rows.append(row)
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_exported_model_writes_what_the_run_writes(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    run = run_of(tiny.train(f"model.kind={kind}", "optimizer.lr=0.05"))
    files = export(run, tmp_path / "out")
    assert {path.name for path in files if not path.name.startswith("perjoule_")} == FILES
    assert (tmp_path / "out" / f"perjoule_models_{kind}.py").is_file()
    saved = list((run / CHECKPOINTS).glob("*/*.safetensors"))
    assert {oct(path.stat().st_mode) for path in (*files, *saved)} == {oct((run / "config.yaml").stat().st_mode)}
    assert all(path.is_file() and path.parent == tmp_path / "out" for path in files)
    model, tokenizer = loaded(tmp_path / "out")
    assert not model.training
    given = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert (given["attention_mask"].sum(1) < given["input_ids"].shape[1]).any()
    new = SEQ_LEN - given["input_ids"].shape[1]
    written = model.generate(**given, max_new_tokens=new, do_sample=False, eos_token_id=None)
    assert written[:, -new:].tolist() == written_by_run(run, PROMPTS, new)
    stop = tokenizer.decode(written[0, -new])
    stopped = model.generate(
        **tokenizer(PROMPTS[:1], return_tensors="pt"),
        stop_strings=[stop],
        tokenizer=tokenizer,
        max_new_tokens=4,
        do_sample=False,
    )
    assert tokenizer.decode(stopped[0]).endswith(stop)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generator("the quick")[0]["generated_text"].startswith("the quick")
    ids = generator("the quick", return_tensors=True)[0]["generated_token_ids"]
    assert kind == "retnet" or len(ids) <= SEQ_LEN


def test_exported_tokenizer_is_ours_behind_the_token_of_a_document(tiny: Tiny, tmp_path: Path) -> None:
    run = run_of(tiny.train())
    export(run, tmp_path / "out")
    ours, theirs = load_trained(run).tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*PROMPTS, TRICKY, ""):
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text
    assert theirs("a", add_special_tokens=False)["input_ids"] == ours.encode("a")
    special = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert special == (ours.bos_id, ours.bos_id, ours.pad_id)
    assert (theirs.padding_side, theirs.model_max_length) == ("left", SEQ_LEN)
    assert isinstance(theirs, PreTrainedTokenizerFast)


def test_checkpoint_may_be_the_best_or_a_step(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("checkpoint.every_steps=2", "checkpoint.keep=9", "optimizer.lr=0.3", "evaluate.every_steps=1")
    run = run_of(tiny.train(*settings))
    saved = run / CHECKPOINTS
    best = checkpoints.best_step(saved)
    assert best is not None
    assert {2, 4, 5} <= set(checkpoints.listed_steps(saved))
    for which, step in (("last", 5), ("best", best), (2, 2)):
        folder = tmp_path / str(which)
        export(run, folder, ExportConfig.model_validate({"checkpoint": which}))
        expected = load_file(saved / f"{step:08d}" / checkpoints.MODEL)
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == {f"model.{name}" for name in expected}
        assert all(torch.equal(weights[f"model.{name}"], tensor) for name, tensor in expected.items())
        assert f"step {step}" in (folder / "README.md").read_text(encoding="utf-8")


def test_tied_weights_and_replay_survive_the_export(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("model.tie_candidates=true", "model.thinking.preset=s2", "model.thinking.replay_capacity=4")
    run = run_of(tiny.train("model.kind=ebt", *settings))
    export(run, tmp_path / "out")
    model, tokenizer = loaded(tmp_path / "out")
    assert not any("replay" in name or "candidate" in name for name in model.state_dict())
    ids = tokenizer(PROMPTS[:1], return_tensors="pt")["input_ids"]
    own = load_trained(run).model({"input_ids": ids, "labels": ids}, with_logits=True).logits
    assert torch.equal(model(ids).logits, own)


@pytest.mark.parametrize("kind", ["retnet", "ebt"])
def test_evaluation_harness_scores_the_folder_as_it_scores_the_run(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")  # which the harness's own model imports
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    from perjoule.evaluate.harness_model import HarnessModel

    run = run_of(tiny.train(f"model.kind={kind}", "stop.steps=30"))
    export(run, tmp_path / "out")
    pairs = [("the quick", " brown fox"), ("", "lazy dogs"), ("seven wizards boil quartz", " in a vat"), ("a", " vat")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    ours = HarnessModel(load_trained(run)).loglikelihood(requests)
    theirs = HFLM(str(tmp_path / "out"), device="cpu", batch_size=3, dtype="float32").loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], rel=1e-5)


def test_model_card_says_what_the_training_cost(tiny: Tiny, tmp_path: Path) -> None:
    run = run_of(tiny.train("energy.sampler=thread", "energy.meters=cpu_time", "stop.steps=40"))
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    rows = dict(line.strip("| ").split(" | ") for line in card.splitlines()[9:] if line.startswith("| "))
    assert rows["architecture"] == "transformer"
    assert rows["parameters"] == "47,264"
    assert rows["vocabulary, longest sequence"] == f"320, {SEQ_LEN} tokens"
    assert rows["tokens trained on"] == f"{40 * 4 * SEQ_LEN:,}"
    assert 0 < float(rows["validation loss"].split()[0]) < 10
    assert rows["time of the whole run"].endswith("s on cpu")
    assert "J; modelled, at least in part) of cpu" in rows["energy of the whole run"]


def test_cost_that_was_not_measured_is_left_out(tiny: Tiny, tmp_path: Path) -> None:
    export(run_of(tiny.train()), tmp_path / "out")
    assert "energy" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_tokens_that_are_no_text_are_exported_without_a_tokenizer(tmp_path: Path) -> None:
    small = ("model.dim=32", "model.num_layers=2", "batch.size=4", "backend=plain", "backend.threads=1", "data=dyck")
    settings = ("stop.steps=2", "evaluate.batches=1", f"runs={tmp_path}", "energy.sampler=off", "model=retnet")
    run = run_of(perjoule.train(perjoule.load(None, *small, *settings)))
    files = {path.name for path in export(run, tmp_path / "out") if not path.name.startswith("perjoule_")}
    assert files == {name for name in FILES if not name.startswith("tokenizer")}
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generate(torch.ones(1, 3, dtype=torch.int64), max_new_tokens=2).shape == (1, 5)
    assert "AutoTokenizer" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_text_without_its_tokenizer_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run = run_of(tiny.train())
    (run / TOKENIZER).unlink()
    with pytest.raises(ConfigError, match=r"was trained on text, and its tokenizer.json is missing"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_that_is_no_language_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, shape = EBTDenoiserConfig(dim=16), {"image_size": 8, "num_channels": 1}
    trained = Trained(tmp_path, 1, config.build(shape), config, shape, torch.device("cpu"))
    monkeypatch.setattr("perjoule.export.load_trained", lambda run, which: trained)
    with pytest.raises(ConfigError, match=r"kind ebt_denoiser is no language model .*; accepted: ebt, longnet, retnet"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_must_be_new_or_empty(tiny: Tiny, tmp_path: Path) -> None:
    run = run_of(tiny.train())
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigError, match=r"out exists already; choose a new folder, or an empty one"):
        export(run, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="file exists already"):
        export(run, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot write .*: Not a directory"):
        export(run, tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_export_that_is_broken_off_leaves_nothing(
    error: BaseException, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = run_of(tiny.train()), tmp_path / "place"
    seen: list[str] = []

    def fail(self: Any, folder: Path) -> None:
        seen.extend(path.name for path in folder.iterdir())
        raise error

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises((ConfigError, KeyboardInterrupt)):
        export(run, place / "out")
    assert "model.safetensors" in seen
    assert list(place.iterdir()) == []


def test_command_prints_the_files_or_one_clear_line(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = run_of(tiny.train()), tmp_path / "out"
    capsys.readouterr()
    assert main(["export", str(run), str(folder), "checkpoint=best"]) == 0
    shown = capsys.readouterr()
    files = [line for line in shown.out.splitlines() if "perjoule_" not in Path(line).name]
    assert files == sorted(str(folder / name) for name in FILES)
    assert shown.err == ""
    assert main(["export", str(run), str(folder)]) == 2
    shutil.rmtree(folder)
    assert main(["export", str(run), str(folder), "checkpoint=3"]) == 7
    assert main(["export", str(run), str(folder), "checkpoint=newest"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["perjoule"] * 3
    assert "has no checkpoint of step 3; it has: 5" in errors[1]
    assert "checkpoint" in errors[2]
