"""Energy-Based Transformer for images: removes noise by descending a learned energy of the whole picture.

    x_0    = the noisy image
    x_k+1  = x_k - α·dE(x_k)/dx_k                      steps times
    E(x)   = mean over patches of w·modulated(LayerNorm(h)),   h = blocks(patches(x) + fixed positions)
    loss   = mean over steps of smooth-L1(x_k, clean image)

The blocks are those of diffusion transformers: bidirectional attention and a GELU layer, each shifted, scaled and gated
by a learned vector. All modulations and the energy head start at zero, so that an untrained model changes nothing. The
function is that of the released code (a golden file in tests/golden); a batch of one is like any other here.

Per sample: time O(steps·num_layers·patches·dim·(dim + patches)).

Gladstone et al., Energy-Based Transformers are Scalable Learners and Thinkers, 2025; Peebles and Xie, Scalable
Diffusion Models with Transformers, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.ebt_body import Modulation, modulated
from perjoule.models.layers.linear import call_differentiably
from perjoule.models.thinking import Detach, Path, Schedule, think

LAYER_NORM_EPS = 1e-6


class EBTDenoiserConfig(Config):
    """Sizes of an image denoiser and how it thinks."""

    kind: Literal["ebt_denoiser"] = "ebt_denoiser"
    dim: PositiveInt = 64
    """Width of the residual stream; a multiple of 4, for positions in two directions."""
    num_layers: PositiveInt = 3
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; divides ``dim``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is 4·dim."""
    patch_size: PositiveInt = 4
    """Pixels of a patch's side; divides the image's."""
    steps: PositiveInt = 3
    """Steps of descent."""
    step_size: PositiveFloat = 100.0
    """α, fixed. The energy is a mean over patches: its slope shrinks with their number."""
    detach: Detach = "all"
    """How far gradients reach back: ``all`` (each step by itself), ``none`` (through all) or ``last-n``."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim")
        if dim is not None and (dim % num_heads or dim % 4):
            raise ValueError(f"dim {dim} must be a multiple of num_heads {num_heads} and of 4")
        return num_heads

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or 4 * self.dim

    def build(self, shape: Mapping[str, int]) -> EBTDenoiser:
        """Build the model for a data set.

        Args:
            shape: the data's ``image_size`` (pixels of a side) and ``num_channels``.

        Raises:
            ConfigError: if the data is not images, or patches do not tile them.
        """
        if missing := [name for name in ("image_size", "num_channels") if name not in shape]:
            raise ConfigError(f"model.kind ebt_denoiser needs data with {' and '.join(missing)}, such as images")
        size = shape["image_size"]
        if size % self.patch_size:
            accepted = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
            raise ConfigError(f"patch_size {self.patch_size} does not divide image_size {size}; accepted: {accepted}")
        return EBTDenoiser(self, size, shape["num_channels"])


class DenoiserBlock(nn.Module):
    """Bidirectional attention and a GELU layer, modulated.

    Args:
        dim: width of the residual stream.
        num_heads: divides it.
        ffn_dim: width of the feed-forward layer.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)
        self.modulation = Modulation(dim, 6)

    def forward(
        self, x: Float[Tensor, "batch patches dim"], condition: Float[Tensor, "1 dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Add both layers' outputs to the residual stream."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)
        heads = call_differentiably(self.qkv, _normalised(x, shift, scale))
        q, k, v = heads.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # Fused attention cannot be differentiated twice.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + gate * call_differentiably(self.output, (weights @ v).transpose(1, 2).flatten(2))
        up = call_differentiably(self.up, _normalised(x, ffn_shift, ffn_scale))
        output: Tensor = x + ffn_gate * call_differentiably(self.down, F.gelu(up, approximate="tanh"))
        return output


def _normalised(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return modulated(F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), shift, scale)


class Pixels:
    """The space of images: a step moves what the energy sees; see :class:`~perjoule.models.thinking.Space`."""

    def enter(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the image twice."""
        return state, state

    def leave(self, base: Tensor, move: Tensor) -> Tensor:
        """Return the moved image."""
        return base - move


class EBTDenoiser(nn.Module):
    """Energy-based denoiser; see the module for the formula.

    Args:
        config: sizes.
        image_size: pixels of a side.
        num_channels: of a pixel.
    """

    compilable: ClassVar[bool] = False
    """torch.compile cannot differentiate twice."""

    positions: Tensor

    def __init__(self, config: EBTDenoiserConfig, image_size: int, num_channels: int) -> None:
        super().__init__()
        self.config = config
        self.side = image_size // config.patch_size
        self.patches = nn.Conv2d(num_channels, config.dim, config.patch_size, stride=config.patch_size)
        self.register_buffer("positions", _positions(self.side, config.dim), persistent=False)
        self.condition = nn.Parameter(torch.zeros(1, config.dim))
        self.blocks = nn.ModuleList(
            DenoiserBlock(config.dim, config.num_heads, config.ffn_width) for _ in range(config.num_layers)
        )
        self.modulation = Modulation(config.dim, 2)
        self.head = nn.Linear(config.dim, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every weight from torch's default generator: Xavier's uniform; 0 for modulations and the head."""
        self.positions = _positions(self.side, self.config.dim).to(self.positions.device)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.normal_(self.condition, std=0.02)

    def energy(self, images: Float[Tensor, "batch channels side side"]) -> Float[Tensor, " batch"]:
        """Return the energy of every image."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, self.condition)
        energies = call_differentiably(self.head, _normalised(x, *self.modulation(self.condition)))
        return energies.squeeze(-1).mean(1)

    def think(self, noisy: Float[Tensor, "batch channels side side"], steps: int | None = None) -> Path:
        """Denoise.

        Args:
            noisy: where to start.
            steps: of descent; None is those of training.

        Raises:
            TrainingDiverged: if a slope is not finite.
        """
        schedule = Schedule.of(steps or self.config.steps, self.config.detach)
        step_size = torch.tensor(self.config.step_size, device=noisy.device)
        return think(lambda images, _: self.energy(images), Pixels(), noisy, schedule, step_size)

    def forward(self, tensors: Mapping[str, Float[Tensor, "batch channels side side"]]) -> Output:
        """Compute the loss of one batch.

        Args:
            tensors: ``noisy`` and ``clean`` images.

        Raises:
            TrainingDiverged: if a slope is not finite.
        """
        path = self.think(tensors["noisy"])
        losses = [F.smooth_l1_loss(state, tensors["clean"]) for state in path.states]
        gap = (path.steps[0].energy - path.steps[-1].energy).mean().detach()
        metrics = {"initial_loss": losses[0].detach(), "final_loss": losses[-1].detach(), "energy_gap": gap}
        return Output(torch.stack(losses).mean(), None, metrics)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per patch; attention is bidirectional, so that both counts agree.

        Args:
            seq_len: patches of an image.
        """
        config = self.config
        weights = config.num_layers * (4 * config.dim**2 + 2 * config.dim * config.ffn_width) + config.dim
        weights += self.patches.weight.numel()
        # Both operands of attention's products depend on the image: their slope costs 4 where a weight's costs 2.
        flops = 12 * config.steps * (weights + 3 * config.num_layers * config.dim * seq_len)
        return FlopsPerToken(full=flops, causal=flops)


def _positions(side: int, dim: int) -> Float[Tensor, "patches dim"]:
    """Return sines and cosines of the column, then of the row, of every patch, row by row."""
    frequencies = torch.exp(torch.arange(dim // 4) * (-math.log(1e4) / (dim // 4)))
    angles = torch.outer(torch.arange(side), frequencies)
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)
