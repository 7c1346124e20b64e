"""The peers' training loops on one workload, each written as its documentation has it.

Every loop takes the same model, fused AdamW, gradient clipping at 1.0 and batches, and reads or keeps the loss of each
step. No peer has a logger, a progress bar or a checkpoint callback. The data loaders hand whole batches through, so
that reading costs every arm the same. What differs:

* hand-written and Fabric read the loss as a number in every step (``loss.item()``);
* HF Trainer sums the loss on the device and looks for NaN (its default); it gets an unprepared loader, which saves it
  accelerate's hooks;
* Lightning Trainer keeps the loss as a tensor and, under bf16, refuses to clip fused AdamW's gradients
  (Lightning #21435), so that it takes the plain one there.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.workload import CLIP_NORM, Workload
from perjoule.data.contract import Samples
from perjoule.measure.machine import installed

Precision = Literal["float32", "bf16"]
Losses = list[Tensor | float]
FrameworkLoop = Callable[[Workload, Samples, int, Precision, Losses], None]


class Batches(Dataset[dict[str, Tensor]]):
    """Step numbers to whole batches, for loaders with ``batch_size=None``."""

    def __init__(self, samples: Samples, rows: int, steps: int) -> None:
        self._samples, self._rows, self._steps = samples, rows, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self._samples.batch(step * self._rows, self._rows).tensors

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        """Return a loader in the order of the stream."""
        return DataLoader(self, batch_size=None, shuffle=False)


class LossModel(nn.Module):
    """Returns the loss alone, in a form that every framework accepts, and keeps it."""

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.module, self.losses = module, losses

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss by its name."""
        loss: Tensor = self.module({"input_ids": input_ids, "labels": labels}).loss
        self.losses.append(loss.detach())
        return {"loss": loss}


def hand_written(workload: Workload, samples: Samples, steps: int, precision: Precision, losses: Losses) -> None:
    """Train with the loop that a tutorial would show."""
    module = workload.model()
    optimizer = workload.optimizer(module)
    context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    for batch in Batches(samples, workload.rows, steps).loader():
        with context:
            loss = module(batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())


def fabric(workload: Workload, samples: Samples, steps: int, precision: Precision, losses: Losses) -> None:
    """Train with Lightning Fabric."""
    from lightning.fabric import Fabric  # type: ignore[import-not-found]  # lives in .peers only

    runner = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if precision == "bf16" else "32-true")
    runner.launch()
    plain = workload.model()
    module, optimizer = runner.setup(LossModel(plain, []), workload.optimizer(plain))
    for batch in runner.setup_dataloaders(Batches(samples, workload.rows, steps).loader()):
        loss = module(**batch)["loss"]
        runner.backward(loss)
        runner.clip_gradients(module, optimizer, max_norm=CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())


def lightning_trainer(workload: Workload, samples: Samples, steps: int, precision: Precision, losses: Losses) -> None:
    """Train with Lightning's Trainer."""
    import lightning  # type: ignore[import-not-found]  # lives in .peers only

    class Task(lightning.LightningModule):  # type: ignore[misc]  # of a package that is not here
        def __init__(self) -> None:
            super().__init__()
            self.model = LossModel(workload.model(), losses)

        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return workload.optimizer(self.model.module, fused=precision == "float32")

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Task(), Batches(samples, workload.rows, steps).loader())


def hf_trainer(workload: Workload, samples: Samples, steps: int, precision: Precision, losses: Losses) -> None:
    """Train with the Trainer of transformers."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class OwnTrainer(Trainer):
        def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
            return Batches(samples, workload.rows, steps).loader()

    module = workload.model()
    optimizer = workload.optimizer(module)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=precision == "bf16",
            max_steps=steps,
            max_grad_norm=CLIP_NORM,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = OwnTrainer(LossModel(module, losses), arguments, optimizers=(optimizer, constant))
        trainer.remove_callback(PrinterCallback)
        trainer.train()


LOOPS: Mapping[str, FrameworkLoop] = {
    "hand-written": hand_written,
    "Fabric": fabric,
    "HF Trainer": hf_trainer,
    "Lightning Trainer": lightning_trainer,
}
_NEEDS = {"Fabric": "lightning", "HF Trainer": "accelerate", "Lightning Trainer": "lightning"}


def missing(name: str) -> str | None:
    """Return the package that a framework's arm lacks here, or None."""
    package = _NEEDS.get(name)
    return package if package is not None and find_spec(package) is None else None


def quiet() -> None:
    """Silence the frameworks' advice, such as to use more loader processes."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def versions() -> str:
    """Return the versions of the peers that are installed."""
    found = {name: installed(name) for name in ("lightning", "transformers", "accelerate")}
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
