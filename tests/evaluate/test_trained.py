"""A model is built again from its run folder, or one line says why not."""

import logging
import re
from pathlib import Path

import pytest
import torch
from tests.system.tiny import Tiny, run_of, write_corpus

import perjoule
from perjoule.config import yaml
from perjoule.core.errors import CheckpointError, ConfigError, DataError, PerjouleError, RunFolderError
from perjoule.evaluate.trained import load_trained
from perjoule.runs import checkpoints
from perjoule.runs.folder import CHECKPOINTS, CONFIG, TOKENIZER


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = Tiny(corpus, tmp_path_factory.mktemp("runs")).train("checkpoint.every_steps=2", "checkpoint.keep=9")
    assert trained.run is not None
    return trained.run


def test_the_model_has_the_weights_of_the_checkpoint_that_was_asked_for(run: Path) -> None:
    last, second = load_trained(run), load_trained(run, 2)
    assert (last.step, second.step) == (5, 2)
    weights = checkpoints.MODEL
    for trained in (last, second):
        from safetensors.torch import load_file

        saved = load_file(run / CHECKPOINTS / f"{trained.step:08d}" / weights)
        assert all(torch.equal(saved[name], tensor) for name, tensor in trained.model.state_dict().items())
        assert not trained.model.training
    assert load_trained(run, "best").step == checkpoints.best_step(run / CHECKPOINTS)


def test_tokenizer_and_data_are_those_of_training(run: Path) -> None:
    trained = load_trained(run)
    data = trained.data()
    assert data.shape == trained.shape
    text = "seven wizards boil quartz"
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == text
    assert trained.tokenizer.content_hash == data.facts["tokenizer"]["hash"]
    assert trained.decoder.prefill == trained.model.prefill


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny.train("checkpoint.every_steps=2").run
    assert run is not None
    (run / CHECKPOINTS / "00000005" / checkpoints.MODEL).write_bytes(b"cut off")
    with caplog.at_level(logging.WARNING):
        assert load_trained(run).step == 4
    assert "00000005 is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="00000005 is damaged"):
        load_trained(run, 5)


def test_a_model_is_evaluated_from_any_folder_and_where_its_data_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    run = run_of(Tiny(Path("corpus"), Path("runs")).train())
    assert run == Path("runs") / run.name
    kept = yaml.load((run / CONFIG).read_text(encoding="utf-8"), CONFIG).data
    assert (kept["data"]["path"], kept["runs"]) == (str(corpus), "runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shape = load_trained(tmp_path / run).data().shape
    # A run of an earlier version has the path as it was typed, and the manifest has it whole.
    config = tmp_path / run / CONFIG
    config.write_text(config.read_text(encoding="utf-8").replace(str(corpus), "corpus"), encoding="utf-8")
    assert load_trained(tmp_path / run).data().shape == shape
    corpus.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=f"no file or folder {corpus}.*data.path=") as refused:
        load_trained(tmp_path / run).data()
    assert str(refused.value).count("\n") == 0
    assert load_trained(tmp_path / run, data_overrides={"path": "../moved"}).data().shape == shape


def test_a_measurement_has_no_model(tmp_path: Path) -> None:
    with perjoule.measure(tmp_path / "mine", meters=["cpu_time"]) as measured, measured.step():
        pass
    with pytest.raises(RunFolderError, match="a measurement of a program that trained its own model"):
        load_trained(tmp_path / "mine")
    (tmp_path / "mine" / CONFIG).unlink()
    with pytest.raises(RunFolderError, match=r"cannot read .*config\.yaml: No such file"):
        load_trained(tmp_path / "mine")


def test_changed_data_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    run = Tiny(corpus, tmp_path / "runs").train().run
    assert run is not None
    (corpus / "00.txt").write_text("another text")
    with pytest.raises(DataError, match=r"the data is not what .* was trained on: its identity was \S+, now it is"):
        load_trained(run).data()


def test_what_cannot_be_built_is_refused_with_one_line(run: Path, tiny: Tiny) -> None:
    def refused(error: type[PerjouleError], message: str, *arguments: object) -> None:
        with pytest.raises(error) as caught:
            load_trained(*arguments)  # type: ignore[arg-type]
        assert re.search(message, str(caught.value))
        assert "\n" not in str(caught.value)

    refused(RunFolderError, "no run folder", run / "nowhere")
    refused(CheckpointError, r"has no checkpoint of step 3; it has: 2, 4, 5$", run, 3)
    refused(
        ConfigError, r"^device cuda does not exist here; accepted: cpu, or cuda where torch has it$", run, 5, "cuda"
    )
    unmeasured = tiny.train("evaluate.split=ood", "name=unmeasured").run
    assert unmeasured is not None
    refused(CheckpointError, "has no best checkpoint: its held-out loss was never measured", unmeasured, "best")
    for path in (unmeasured / CHECKPOINTS).glob("0*"):
        path.rename(path.with_name(f".{path.name}"))
    refused(CheckpointError, "has no checkpoint yet", unmeasured)


def test_a_run_without_text_has_no_tokenizer_and_a_denoiser_writes_nothing(tiny: Tiny) -> None:
    run = tiny.train("name=text").run
    assert run is not None
    (run / TOKENIZER).unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer.json: its model was not trained on text, or by an older"):
        _ = load_trained(run).tokenizer
    trained = load_trained(run)
    object.__setattr__(trained, "model", torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="a model of kind transformer writes no tokens"):
        _ = trained.decoder
