"""Hugging Face's Trainer trains every architecture; it needs accelerate, which the extra ``huggingface`` installs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.huggingface.cases import KINDS, assert_same_numbers, new_model, tokens
from transformers import Trainer, TrainerCallback, TrainingArguments

from perjoule.models.huggingface import PerjouleTransformerForCausalLM

pytest.importorskip("accelerate")


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_lowers_the_loss_and_saves_what_can_be_loaded(kind: str, tmp_path: Path) -> None:
    model = new_model(kind, init_std=0.02)
    model.model.reset_parameters()
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in tokens(8)]
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=10,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_steps=10,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=samples, eval_dataset=samples)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    loaded, ids = type(model).from_pretrained(tmp_path / "checkpoint-10").eval(), tokens()
    assert_same_numbers(loaded(ids).logits, model.eval()(ids).logits)


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.found = [one.grad.clone() for one in named["model"].parameters() if one.grad is not None]


def trained(model: Any, rows: list[Any], folder: Path, **settings: Any) -> list[torch.Tensor]:
    """Train with these settings and return the gradients of the last step."""
    longest, gradients = max(map(len, rows)), Gradients()
    samples = []
    for row in rows:
        padding = torch.ones(longest - len(row), dtype=torch.int64)
        labels = torch.cat((row, -100 * padding))
        mask = torch.cat((torch.ones_like(row), 0 * padding))
        samples.append({"input_ids": labels.clamp(min=0), "labels": labels, "attention_mask": mask})
    quiet: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no"}
    arguments = TrainingArguments(str(folder), **quiet, **settings)
    Trainer(model=model, args=arguments, train_dataset=samples, callbacks=[gradients]).train()
    return gradients.found


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("kind", ["retnet", "longnet", "transformer"])  # an EBT draws other first guesses
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_gradients_are_those_of_one_batch(kind: str, smoothing: float, tmp_path: Path) -> None:
    model, rows = new_model(kind), [tokens(1, length)[0] for length in (20, 3, 3, 3)]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 0.0, "label_smoothing_factor": smoothing}
    at_once = trained(model, rows, tmp_path, per_device_train_batch_size=4, **settings)
    model.load_state_dict(state)
    one_by_one = trained(
        model, rows, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings
    )
    for one, other in zip(at_once, one_by_one, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(one.norm())


class Subclass(PerjouleTransformerForCausalLM):
    """A user's own."""


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("architecture", [PerjouleTransformerForCausalLM, Subclass])
def test_smoothed_labels_are_those_of_the_next_token(architecture: Any, tmp_path: Path) -> None:
    rows = [(torch.arange(12) + start) % 12 for start in range(12)]
    config = architecture.config_class(dim=32, num_layers=1, num_heads=2, vocab_size=12, seq_len=12)
    torch.manual_seed(0)
    model = architecture(config)
    settings = {"max_steps": 40, "learning_rate": 1e-2, "label_smoothing_factor": 0.1}
    trained(model, rows, tmp_path, per_device_train_batch_size=12, **settings)
    predicted = model.eval()(rows[3][None]).logits.argmax(-1)[0]
    assert torch.equal(predicted[1:-1], rows[3][2:])
