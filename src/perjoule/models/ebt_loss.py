"""What an Energy-Based Transformer learns from: the states of its thinking, and optionally the energies."""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from perjoule.core.labels import IGNORED
from perjoule.models.layers.readout import chunked_read_out_loss, soft_target_loss
from perjoule.models.thinking import Energy, Path, ThinkingConfig


@dataclass(frozen=True)
class Judge:
    """Turns a path of thinking into a loss.

    Args:
        thinking: what is judged.
        weight: (vocab, dim), the candidates' embedding.
        chunk_rows: rows of the last logits that exist at a time, where the path left its last state out.
    """

    thinking: ThinkingConfig
    weight: Tensor
    chunk_rows: int | None

    def __call__(
        self, path: Path, labels: Int64[Tensor, "batch seq"], training: bool
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and what else is worth recording: first and last step's loss, and how far the energy fell.

        Energies of different landscapes cannot be compared; the gap means something in one landscape only.

        Args:
            path: what was thought.
            labels: -100 is ignored.
            training: judge what the configuration says; otherwise the last state against hard targets.
        """
        last = len(path.steps) - 1
        judged = [last]
        if training and self.thinking.loss_on == "all":
            any_learned = any(step.learned for step in path.steps)
            judged = [number for number, step in enumerate(path.steps) if step.learned or not any_learned]
        softness = [self.thinking.smoothing(number, last) if training else 0.0 for number in range(last + 1)]
        losses = {number: self._step(path, number, labels, softness[number]) for number in judged}
        with torch.no_grad():
            first = losses[0] if 0 in losses else self._step(path, 0, labels, softness[0])
            gap = path.steps[0].energy.mean() - path.steps[last].energy.mean()
        metrics = {"initial_loss": first.detach(), "final_loss": losses[last].detach(), "energy_gap": gap}
        return torch.stack(list(losses.values())).mean(), metrics

    def _step(self, path: Path, number: int, labels: Tensor, smoothing: float) -> Tensor:
        """Return the cross-entropy of a step's logits; in chunks where its state was left out."""
        if number < len(path.states):
            return soft_target_loss(path.states[number].flatten(0, 1), labels.flatten(), smoothing)
        step = path.steps[number]
        assert self.chunk_rows is not None
        base, move = step.base.flatten(0, 1), step.move.flatten(0, 1)
        return chunked_read_out_loss(base, move, self.weight, labels.flatten(), smoothing, self.chunk_rows)

    def contrast(
        self, path: Path, labels: Int64[Tensor, "batch seq"], energy: Energy, landscape_step: int
    ) -> Float[Tensor, ""]:
        """Return how hard it is to tell the true token from the last step's candidate by their energies.

        It is the cross-entropy of choosing the truth out of the two with probabilities proportional to exp(-energy).

        Args:
            path: what was thought.
            labels: -100 is ignored.
            energy: of embedded candidates.
            landscape_step: the step whose energy the true token gets.
        """
        useful = labels != IGNORED
        truth = F.embedding(labels.clamp(min=0), self.weight)
        margins = energy(truth, landscape_step) - path.steps[-1].energy
        return (F.softplus(margins) * useful).sum() / useful.sum().clamp(min=1)
