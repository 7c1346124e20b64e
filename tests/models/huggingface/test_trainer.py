"""Hugging Face's Trainer trains every architecture; it needs accelerate, which the extra ``huggingface`` installs."""

from pathlib import Path

import pytest
import torch
from tests.models.huggingface.cases import KINDS, new_model, tokens
from transformers import Trainer, TrainingArguments

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
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
