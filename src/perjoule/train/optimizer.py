"""AdamW and gradient clipping: what a step does to the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from perjoule.config import Config

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with decoupled weight decay on matrices only."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Applied to parameters with two or more axes; norms are left alone."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest L2 norm of the whole gradient; None: no clipping."""

    def build(self, model: nn.Module, fused: bool) -> torch.optim.AdamW:
        """Return AdamW over the model's parameter groups.

        A model may bring ``parameter_groups()``: dicts with ``params``, ``weight_decay`` (a factor of ours) and, if a
        group is to learn at another rate, ``lr_scale``. The schedule's floor is scaled with it.
        """
        own_groups = getattr(model, "parameter_groups", None)
        groups: list[dict[str, Any]] = own_groups() if own_groups is not None else _by_axes(model)
        groups = [
            {"lr_scale": 1.0, **group, "weight_decay": self.weight_decay * group["weight_decay"]} for group in groups
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=fused,
            foreach=None if fused else False,
        )


def _by_axes(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups: matrices with weight decay, vectors and scalars without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": 1.0},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class Clipper:
    """Measure the gradient's norm and scale the gradient down to ``max_norm``.

    On a CPU reading the norm costs nothing, so gradients within the bound are not touched at all; on an accelerator
    they are scaled by a factor that stays on the device, so that nothing waits.

    Args:
        parameters: what is trained.
        max_norm: largest norm; None: only measure.
        before: called first, while the gradients are as they came.
    """

    parameters: Sequence[nn.Parameter]
    max_norm: float | None
    before: Callable[[], None] | None = None

    def __call__(self) -> torch.Tensor:
        """Clip and return the norm before clipping, a scalar on the parameters' device."""
        if self.before is not None:
            self.before()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.max_norm is None:
            return norm
        if norm.device.type == "cpu":
            value = norm.item()
            if value > self.max_norm:
                torch._foreach_mul_(gradients, self.max_norm / (value + 1e-6))
        else:
            nn.utils.clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        return norm
