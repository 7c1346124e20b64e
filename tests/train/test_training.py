"""What a run computes: the same losses however the work is cut, falling ones, and one per precision."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.system.tiny import SEQ_LEN, VOCAB_SIZE, Tiny, losses, metrics, run_of, segments

from perjoule.core.errors import ConfigError
from perjoule.models.transformer import Transformer
from perjoule.runs.folder import CHECKPOINTS, read_manifest
from perjoule.runs.tables import load_run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / CHECKPOINTS / "00000005" / "model.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[float]:
    return Tiny(corpus, tmp_path_factory.mktemp("reference")).losses_of()


@pytest.mark.parametrize("accumulation", [2, 4])
def test_losses_do_not_depend_on_accumulation(tiny: Tiny, reference: list[float], accumulation: int) -> None:
    assert tiny.losses_of(f"batch.accumulation={accumulation}") == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_losses_of_padded_batches_do_not_depend_on_accumulation(tiny: Tiny, accumulation: int) -> None:
    padded = ("data.batching=padded", "data.seq_len=100")
    whole = tiny.losses_of(*padded)
    assert tiny.losses_of(*padded, f"batch.accumulation={accumulation}") == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_losses_are_bit_identical_for_any_number_of_workers(tiny: Tiny, reference: list[float], workers: int) -> None:
    assert tiny.losses_of(f"batch.workers={workers}") == reference


def test_a_seeded_rerun_is_bit_identical_and_another_seed_is_not(tiny: Tiny, reference: list[float]) -> None:
    assert tiny.losses_of() == reference
    assert tiny.losses_of("seed=1") != reference


def test_loss_begins_at_the_logarithm_of_the_vocabulary_and_falls(tiny: Tiny) -> None:
    result = tiny.train("stop.steps=60", "optimizer.lr=0.01", "batch.size=8")
    course = losses(run_of(result))
    assert course[0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.2)
    assert course[-1] < 0.75 * math.log(VOCAB_SIZE)
    assert result.held_out_loss is not None
    assert result.held_out_loss < 0.75 * math.log(VOCAB_SIZE)


def test_learning_rates_of_the_schedule_reach_the_metrics(tiny: Tiny) -> None:
    run = run_of(tiny.train("schedule={kind: linear, warmup_steps: 1, floor: 0}", "optimizer.lr=0.3"))
    assert [line["lr"] for line in metrics(run, "step")] == pytest.approx([0.15, 0.3, 0.2, 0.1, 0.0])


def test_steps_count_samples_tokens_and_useful_labels(tiny: Tiny) -> None:
    steps = load_run(run_of(tiny.train())).steps
    assert steps.samples.tolist() == [4] * 5
    assert steps.tokens.tolist() == [4 * SEQ_LEN] * 5
    assert (steps.useful <= steps.tokens).all()
    assert (steps.useful > 0.8 * steps.tokens).all()
    assert (steps.memory_bytes > 10e6).all()


def test_padded_batches_train_and_their_ignored_fraction_is_recorded(tiny: Tiny) -> None:
    run = run_of(tiny.train("data.batching=padded", "data.seq_len=100", "stop.epochs=1", "stop.steps=null"))
    facts = load_run(run).fact("data", "facts")["splits"]["train"]
    steps = load_run(run).steps
    # Every label of the epoch was seen once; the last step begins the next epoch to fill its batch.
    assert 0 <= int(steps.samples.sum()) - facts["num_samples"] < 4
    assert 0.1 < facts["ignored_fraction"] < 0.9
    measured = 1 - steps.useful.sum() / steps.tokens.sum()
    assert measured == pytest.approx(facts["ignored_fraction"], abs=0.05)


def test_bf16_autocast_keeps_float32_weights(tiny: Tiny, reference: list[float]) -> None:
    run = run_of(tiny.train("backend.precision=bf16-autocast"))
    assert losses(run) != reference
    assert losses(run) == pytest.approx(reference, rel=0.01)
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert segments(run)[0]["backend"]["chosen"]["precision"] == "bf16-autocast"


def test_pure_bf16_trains_and_warns(tiny: Tiny, reference: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tiny.train("backend.precision=bf16"))
    assert losses(run) == pytest.approx(reference, rel=0.03)
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.bfloat16}
    warning = "bf16 weights round away updates below about 0.4 % of a weight"
    assert f"backend: {warning}" in capsys.readouterr().out
    assert warning in segments(run)[0]["backend"]["why"][0]


def test_activation_checkpointing_changes_no_loss(tiny: Tiny, reference: list[float]) -> None:
    assert tiny.losses_of("model.activation_checkpointing=true") == reference


def test_blocked_attention_and_fused_optimizer_agree_with_the_plain_backend(tiny: Tiny, reference: list[float]) -> None:
    fast = ("backend.attention=blocked", "backend.fused_optimizer=true")
    assert tiny.losses_of(*fast) == pytest.approx(reference, abs=1e-5)


def test_initial_weights_of_another_run_are_the_start(tiny: Tiny) -> None:
    before = run_of(tiny.train("stop.steps=30", "optimizer.lr=0.01"))
    file = before / CHECKPOINTS / "00000030" / "model.safetensors"
    run = run_of(tiny.train(f"initial_weights={file}", "stop.steps=1", "seed=3"))
    assert losses(run)[0] < losses(before)[0] - 0.5
    assert read_manifest(run)["status"] == "finished"


def test_a_training_split_without_a_validation_split_says_so_and_trains(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tiny.train("data.fractions={train: 1, validation: 0, test: 0}")
    assert result.held_out_loss is None
    assert load_run(run_of(result)).evaluations == ()
    assert "held-out loss: not measured (the validation split (data.fractions.validation=0)" in capsys.readouterr().out


def test_a_model_may_act_after_each_optimizer_step(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Transformer, "after_optimizer_step", lambda self: seen.append(1), raising=False)
    tiny.train("stop.steps=3", "batch.accumulation=2")
    assert len(seen) == 3


def test_documents_that_are_kept_apart_give_another_loss(tiny: Tiny, reference: list[float]) -> None:
    masked = tiny.losses_of("data.mask_documents=true")
    assert all(math.isfinite(loss) for loss in masked)
    assert masked != reference


def test_a_model_that_would_not_keep_documents_apart_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transformer, "masks_documents", False)
    with pytest.raises(ConfigError, match=r"^data.mask_documents: a model of kind transformer does not keep documents"):
        tiny.train("data.mask_documents=true")
