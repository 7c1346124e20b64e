"""Curves of thinking against the model's own steps, one by one, and costs against what a step multiplies."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.system.tiny import SEQ_LEN, VOCAB_SIZE, Tiny, run_of
from torch.nn import functional as F

from perjoule.core.errors import ConfigError, DataError
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.corpus import LossConfig, corpus_loss
from perjoule.evaluate.thinking_curves import ThinkingCurvesConfig, _falls_throughout, thinking_curves
from perjoule.evaluate.trained import Trained, load_trained
from perjoule.models.ebt import EBT
from perjoule.models.ebt_decode import Decoding
from perjoule.models.ebt_simplex import Simplex

FEW: dict[str, Any] = {"candidates": 2, "stop_shares": 0.1, "splits": "validation", "batch_size": 64}
DYCK = ("data={kind: dyck, num_kinds: 2, depth: 3, seq_len: 24, num_held_out: 20, num_train: 100}",)


def thinker(tiny: Tiny, *overrides: str, scale: float = 0.1) -> Trained:
    """Return a trained model whose weights are moved far from their start, where every term counts."""
    trained = load_trained(run_of(tiny.train("model.kind=ebt", *overrides)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if name != "alpha.factor":
                parameter.copy_(torch.randn(parameter.shape) * scale + (scale > 0 and "norm" in name))
    return trained


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return thinker(Tiny(corpus, tmp_path_factory.mktemp("thinking") / "runs"))


@pytest.fixture(scope="module")
def findings(trained: Trained) -> Findings:
    return found(trained, steps=(0, 1, 2, 4), stop_shares=(1.5, 0.1))


def model_of(trained: Trained) -> EBT:
    assert isinstance(trained.model, EBT)
    return trained.model


def found(trained: Trained, say: Callable[[str], None] = lambda line: None, **settings: Any) -> Findings:
    return thinking_curves(trained, ThinkingCurvesConfig.model_validate(FEW | settings), say)


def metric(findings: Findings, name: str, of: str) -> Metric:
    (only,) = (metric for metric in findings.metrics if (metric.name, metric.of) == (name, of))
    return only


def value(findings: Findings, name: str, of: str) -> float:
    number = metric(findings, name, of).value
    assert number is not None
    return number


def rows_of(trained: Trained, split: str = "validation") -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of a split."""
    samples = trained.data().split(split)
    tensors = samples.batch(0, samples.num_samples).tensors
    return tensors["input_ids"], tensors["labels"]


@pytest.mark.parametrize("settings", [{}, {"variant": "time_embed", "thinking.landscapes": 2}])
def test_curve_is_the_loss_and_energy_of_each_step_in_the_last_landscape(tiny: Tiny, settings: dict[str, Any]) -> None:
    trained = thinker(tiny, *(f"model.{key}={value}" for key, value in settings.items()))
    model = model_of(trained)
    inputs, labels = rows_of(trained)
    findings = found(trained, steps=(0, 3, 5))
    curve = findings.details["splits"]["validation"]["curve"]
    assert curve["steps"] == [0, 1, 2, 3, 4, 5]
    useful, energy = labels != -100, model.energy(inputs)
    state = model.guess.fixed(inputs, 1, model.candidate_matrix())[0]
    for steps in range(6):
        if steps:
            state = model.deliberate(inputs, Decoding(steps)).logits
        loss = F.cross_entropy(state[useful], labels[useful]).item()
        candidate = Simplex(model.candidate_matrix()).enter(state, 0)[1]
        with torch.no_grad():
            depth = energy(candidate, 4)[useful].mean().item()
        assert curve["loss"][steps] == pytest.approx(loss, rel=1e-4)
        assert curve["energy"][steps] == pytest.approx(depth, rel=1e-3, abs=1e-5)
    assert value(findings, "loss", "validation, 3 steps") == curve["loss"][3]
    assert value(findings, "energy", "validation, 0 steps") == curve["energy"][0]
    assert value(findings, "loss_change", "validation, 5 steps") == pytest.approx(curve["loss"][5] - curve["loss"][2])
    assert findings.details["num_landscapes"] == (2 if settings else 1)
    assert findings.details["energy_landscape"] == (1 if settings else 0)


def test_steps_of_training_give_the_loss_of_an_ordinary_evaluation(tiny: Tiny) -> None:
    trained = thinker(tiny, "model.thinking.steps=3")
    curve = found(trained).details["splits"]["validation"]["curve"]
    ordinary = corpus_loss(trained, LossConfig(batch_size=4), lambda line: None)
    figures = {one.name: one for one in ordinary.metrics}
    assert curve["loss"][3] == pytest.approx(figures["loss"].value, rel=1e-6)
    assert curve["loss_stderr"][3] == pytest.approx(figures["loss"].stderr, rel=1e-5)
    assert curve["accuracy"][3] == figures["accuracy"].value
    assert (curve["loss_change"][3], curve["loss_change_stderr"][3]) == (0.0, 0.0)


def test_best_of_two_is_at_each_position_the_guess_that_ends_lower(
    trained: Trained, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(trained)
    inputs, labels = rows_of(trained)
    useful = labels != -100
    losses, energies = [], []
    for start in model.guess.fixed(inputs, 2, model.candidate_matrix()):
        monkeypatch.setattr(model.guess, "fixed", lambda *_, start=start: [start])
        verdict = model.deliberate(inputs, Decoding(2))
        losses.append(F.cross_entropy(verdict.logits[useful], labels[useful], reduction="none"))
        energies.append(verdict.energy[useful])
    monkeypatch.undo()
    wins = energies[1] < energies[0]
    assert 0 < wins.sum() < len(wins)
    expected = torch.where(wins, losses[1], losses[0])
    assert value(findings, "loss", "validation, best of 2") == pytest.approx(expected.mean().item(), rel=1e-5)
    change = (expected - losses[0]).mean().item()
    assert value(findings, "loss_change", "validation, best of 2") == pytest.approx(change, rel=1e-3)
    assert value(findings, "energy", "validation, best of 2") < value(findings, "energy", "validation, 2 steps")


def test_refusing_steps_uphill_ends_no_higher_than_the_start_and_takes_fewer_steps(findings: Findings) -> None:
    refusing = "validation, 4 steps, accept if lower"
    assert value(findings, "energy", refusing) < value(findings, "energy", "validation, 0 steps")
    assert 0 < value(findings, "steps_taken", refusing) < 4
    assert metric(findings, "steps_taken", refusing).unit == "steps/token"


def test_early_stop_is_at_a_share_of_the_mean_fall_of_the_energy(trained: Trained, findings: Findings) -> None:
    energy = findings.details["splits"]["validation"]["curve"]["energy"]
    thresholds = findings.details["early_stop_below"]
    loose, tight = "4 steps, early stop 1.5", "4 steps, early stop 0.1"
    assert thresholds == {
        tight: pytest.approx(0.1 * abs(energy[0] - energy[2])),
        loose: pytest.approx(1.5 * abs(energy[0] - energy[2])),
    }
    inputs, labels = rows_of(trained)
    steps = model_of(trained).deliberate(inputs, Decoding(4, stop_below=thresholds[loose])).steps[labels != -100]
    assert value(findings, "steps_taken", f"validation, {loose}") == pytest.approx(steps.double().mean().item())
    assert value(findings, "steps_taken", f"validation, {loose}") < value(
        findings, "steps_taken", f"validation, {tight}"
    )


def test_falls_throughout_counts_positions_that_never_rise_and_end_lower() -> None:
    energy = np.array([[3.0, 3.0, 1.0, 3.0], [2.0, 1.0, 1.0, 3.0], [2.0, 2.0, 1.0, 1.0]])
    assert _falls_throughout(energy).tolist() == [True, False, False, True]


def test_energies_that_fall_and_go_with_the_loss_are_counted_over_positions(
    trained: Trained, findings: Findings
) -> None:
    inputs, labels = rows_of(trained)
    useful = labels != -100
    verdict = model_of(trained).deliberate(inputs, Decoding(2), staged=True)
    stages = torch.stack([stage.energy[useful] for stage in verdict.stages])
    falls = ((stages[1] <= stages[0]) & (stages[2] <= stages[1]) & (stages[2] < stages[0])).double().mean().item()
    assert value(findings, "energy_falls_throughout", "validation, 2 steps") == pytest.approx(falls, abs=0.02)
    losses = F.cross_entropy(verdict.logits[useful], labels[useful], reduction="none")
    expected = np.corrcoef(stages[2].numpy(), losses.numpy())[0, 1]
    related = metric(findings, "energy_loss_correlation", "validation, 2 steps")
    assert related.value == pytest.approx(expected, abs=1e-4)
    assert related.stderr is not None
    assert 0 < related.stderr < 1


def test_flops_are_those_that_a_step_multiplies(trained: Trained, findings: Findings) -> None:
    sizes = model_of(trained).config
    weights = sizes.num_layers * (4 * sizes.dim**2 + 3 * sizes.dim * sizes.ffn_width) + sizes.dim
    attention = sizes.num_layers * 2 * sizes.dim * SEQ_LEN
    forward = 2 * (weights + attention)
    embedding = 2 * VOCAB_SIZE * sizes.dim
    step = 2 * forward + 2 * embedding  # and the slope; embed and read out
    one, two, four = (value(findings, "flops_per_token", f"{n} step{'s' * (n > 1)}") for n in (1, 2, 4))
    assert two - one == pytest.approx(step, rel=0.01)
    assert four - two == pytest.approx(2 * step, rel=0.01)
    best = value(findings, "flops_per_token", "best of 2")
    assert best - two == pytest.approx(2 * step + forward + embedding, rel=0.01)  # the context is read once
    refusing = value(findings, "flops_per_token", "2 steps, accept if lower")
    assert refusing - two == pytest.approx(2 * (forward + embedding), rel=0.01)
    assert (
        0 < value(findings, "time_per_token", "1 step") < value(findings, "time_per_token", "4 steps, early stop 0.1")
    )


@pytest.mark.parametrize(
    ("data", "splits"),
    [
        ((), ["validation", "test"]),
        (DYCK, ["validation", "ood"]),
        (("data.fractions={train: 0.9, validation: 0.1, test: 0}",), ["validation"]),
    ],
)
def test_splits_are_validation_and_the_one_farthest_from_training(
    tiny: Tiny, data: tuple[str, ...], splits: list[str]
) -> None:
    lines: list[str] = []
    findings = found(thinker(tiny, *data), lines.append, splits=None, steps=2, batches=1)
    assert list(findings.details["splits"]) == splits
    assert {one.of.partition(",")[0] for one in findings.metrics if one.name == "accuracy"} == set(splits)
    assert [line for line in lines if "best of" in line] == [f"thinking: {split}, best of 2" for split in splits]


def test_a_model_without_energies_has_neither_a_correlation_nor_an_early_stop(tiny: Tiny) -> None:
    findings = found(thinker(tiny, scale=0.0), steps=2)
    assert metric(findings, "energy_loss_correlation", "validation, 2 steps").value is None
    assert findings.details["energy_loss_correlation"] == "not finite, or the same at every position"
    assert findings.details["early_stop_below"] == "not measured: thinking does not change the energy"
    assert not any("early stop" in one.of for one in findings.metrics)
    assert value(findings, "energy_falls_throughout", "validation, 2 steps") == 0
    assert value(findings, "loss", "validation, 2 steps") == pytest.approx(math.log(VOCAB_SIZE), rel=0.01)


def test_default_steps_go_to_four_times_those_of_training(tiny: Tiny) -> None:
    trained = thinker(tiny, "model.thinking.steps=2", "model.thinking.max_steps=3")
    findings = found(trained)
    reported = [one.of for one in findings.metrics if one.name == "loss" and one.of.endswith(("step", "steps"))]
    assert reported == [f"validation, {steps}" for steps in ("0 steps", "1 step", "3 steps", "6 steps", "12 steps")]
    assert findings.details["trained_steps"] == 3
    assert ThinkingCurvesConfig.model_validate({"steps": 4, "candidates": 2}).steps == (4,)


def test_other_models_cannot_think(tiny: Tiny) -> None:
    trained = load_trained(run_of(tiny.train()))
    with pytest.raises(ConfigError, match=r"a model of kind transformer cannot think; accepted: runs of kind ebt$"):
        found(trained)


def test_rows_without_a_label_that_counts_are_refused(tiny: Tiny) -> None:
    trained = thinker(tiny, "data.seq_len=1")  # the first row has the transition from BOS alone
    with pytest.raises(DataError, match=r"none of the rows read has a label that counts; raise thinking\.batches$"):
        found(trained, batches=1, batch_size=1)
