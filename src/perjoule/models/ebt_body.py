"""The energy of a candidate: a decoder that reads a context once and any number of candidates against it.

    context    h = h + Attention(RMSNorm(h));  h = h + GLU(RMSNorm(h))      keys and values of every layer are kept
    candidate  h = c + …the same blocks, reading those keys and values…        E_i = w·RMSNorm(h_i)

The last block's context needs its keys and values only. A *landscape* is the energy function of one thinking step:
``default`` has a single one; ``time_embed`` puts a learned vector in front of the context; ``adaln`` lets it shift,
scale and gate every block, and the last norm, of both streams:

    h = h + g·Layer(RMSNorm(h)·(1 + a) + b)        (a, b, g) = Linear(silu(t_landscape))

``adaln_zero`` is the same with that linear map starting at zero. A landscape that was not trained is the last one that
was. Peebles and Xie, Scalable Diffusion Models with Transformers, 2023, for adaLN.

Where documents that share a row are kept apart (layers/documents.py), the positions of each begin at 0, or right behind
the landscape's vector, which sees nothing but itself and is the same for all of them.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.models.ebt_sizes import EBTSizes
from perjoule.models.layers.documents import places_within, visible_tokens
from perjoule.models.layers.dropout import dropout_layer
from perjoule.models.layers.glu import GLU
from perjoule.models.layers.linear import call_differentiably
from perjoule.models.layers.norm import DynamicTanh
from perjoule.models.layers.positions import position_table
from perjoule.models.layers.rope import Table
from perjoule.models.layers.twice import EnergyRMSNorm, gated
from perjoule.models.layers.two_stream import Stream, TwoStreamAttention


@dataclass(frozen=True)
class Context:
    """A context as candidates see it under one landscape.

    Args:
        landscape: its index.
        kept: for each layer (2, batch, heads, columns, head_dim) keys and values.
        real: (batch, columns) False where a shorter prompt is padded on the left; None if nowhere.
        visible: (batch, 1, columns, columns) which columns a token and its candidate may see; None is the earlier ones
            that are real, and itself.
        positions: (batch, columns) of the tokens in their documents; None is those in the row.
    """

    landscape: int
    kept: list[Tensor]
    real: Tensor | None = None
    visible: Tensor | None = None
    positions: Tensor | None = None

    @property
    def num_columns(self) -> int:
        """Return the number of columns: tokens, padding, and the landscape's vector if it stands in front."""
        return self.kept[0].shape[3]

    def select(self, rows: Int64[Tensor, " batch"]) -> Context:
        """Return the context of these rows, in this order."""
        real = None if self.real is None else self.real[rows]
        return Context(self.landscape, [kept[:, rows] for kept in self.kept], real)


class Modulation(nn.Module):
    """Learned shifts, scales and gates from a landscape's vector.

    Args:
        dim: of the vector and of what is modulated.
        num_outputs: how many vectors it gives.
    """

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_outputs * dim)
        self.num_outputs = num_outputs

    def forward(self, vector: Float[Tensor, "*batch dim"]) -> tuple[Float[Tensor, "*batch dim"], ...]:
        """Return the modulating vectors."""
        outputs: tuple[Tensor, ...] = self.linear(F.silu(vector)).chunk(self.num_outputs, dim=-1)
        return outputs


def modulated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """Return ``x·(1 + scale) + shift``, or ``x`` where there is nothing to modulate with."""
    return x if shift is None or scale is None else x * (1 + scale) + shift


def new_norm(sizes: EBTSizes, bias: bool = True) -> nn.Module:
    """Return a norm of the configured kind; before the energy head a bias would be an energy without a gradient."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "rms": lambda: EnergyRMSNorm(sizes.dim, sizes.norm_eps),
        "layer": lambda: nn.LayerNorm(sizes.dim, sizes.norm_eps, bias=bias),
        "dyt": lambda: DynamicTanh(sizes.dim, bias),
        "none": nn.Identity,
    }
    return kinds[sizes.norm]()


class Block(nn.Module):
    """One attention and one feed-forward layer for both streams.

    Args:
        sizes: the model's.
    """

    def __init__(self, sizes: EBTSizes) -> None:
        super().__init__()
        self.attention_norm = new_norm(sizes)
        self.attention = TwoStreamAttention(sizes.dim, sizes.num_heads)
        self.ffn_norm = new_norm(sizes)
        self.ffn = GLU(sizes.dim, sizes.ffn_width, sizes.activation, sizes.activation_dropout)
        self.dropout = dropout_layer(sizes.dropout)
        self.modulation = Modulation(sizes.dim, 6) if sizes.variant.startswith("adaln") else None

    def modulators(self, vector: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return shift, scale and gate of the attention and of the feed-forward layer."""
        return (None,) * 6 if self.modulation is None else self.modulation(vector)

    def forward(
        self,
        x: Float[Tensor, "batch rows dim"],
        stream: Stream,
        table: Table | None,
        kept: Tensor | None,
        visible: Tensor | None,
        vector: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Take a stream through this block; return it, and the context's keys and values if it is that.

        Args:
            x: the residual stream.
            stream: which one it is; of ``keys`` only those come back changed.
            table: of its positions.
            kept: (2, batch, heads, columns, head_dim) keys and values of earlier tokens, or of the candidates' context.
            visible: which columns each row may see.
            vector: the landscape's, which modulates.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulators(vector)
        inputs = modulated(self.attention_norm(x), shift, scale)
        mixed, seen = self.attention(inputs, stream, table, kept, visible)
        if mixed is None:
            return x, seen
        mixed = self.dropout(mixed)
        x = x + (mixed if gate is None else gate * mixed)
        up = call_differentiably(self.ffn.gate_up, modulated(self.ffn_norm(x), ffn_shift, ffn_scale))
        change = self.dropout(call_differentiably(self.ffn.down, self.ffn.dropout(gated(up, self.ffn.activation))))
        return x + (change if ffn_gate is None else ffn_gate * change), seen


class EnergyBody(nn.Module):
    """The blocks, the landscapes and the energy head.

    Args:
        sizes: the model's.
        seq_len: tokens of the longest context.
    """

    def __init__(self, sizes: EBTSizes, seq_len: int) -> None:
        super().__init__()
        self.variant, self.num_landscapes = sizes.variant, sizes.num_landscapes
        # A candidate stands one behind the last token, and a landscape's vector one before the first.
        self.rope = position_table(sizes.positions, seq_len + 2, sizes.head_dim, sizes.rope_theta)
        self.landscapes = None if sizes.variant == "default" else nn.Embedding(sizes.num_landscapes, sizes.dim)
        self.dropout = dropout_layer(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.num_layers))
        self.norm = new_norm(sizes, bias=False)
        self.modulation = Modulation(sizes.dim, 2) if sizes.variant.startswith("adaln") else None
        self.head = nn.Linear(sizes.dim, 1, bias=False)

    def reset_modulations(self, std: float) -> None:
        """Let landscapes modulate little, or with ``adaln_zero`` nothing at all: gates too are 0 then.

        Args:
            std: of the weights.
        """
        for module in self.modules():
            if isinstance(module, Modulation):
                zero = self.variant == "adaln_zero"
                nn.init.normal_(module.linear.weight, std=0.0 if zero else std)
                nn.init.zeros_(module.linear.bias)
                if module.num_outputs == 6 and not zero:
                    with torch.no_grad():
                        module.linear.bias.view(6, -1)[[2, 5]] = 1.0  # the gates, third of each layer's three

    def landscape_of(self, step: int) -> int:
        """Return the landscape of a thinking step: its own, or the last one if it has none."""
        return 0 if self.landscapes is None else min(step, self.num_landscapes - 1)

    def _vector(self, landscape: int, device: torch.device) -> Tensor | None:
        return None if self.landscapes is None else self.landscapes(torch.tensor([landscape], device=device))

    def _table(self, begin: int, end: int, positions: Tensor | None = None) -> Tensor | None:
        """Return the table from ``begin`` to before ``end``, if there is one, or that of positions before ``end``."""
        table: Tensor | None = self.rope(end)
        if table is None:
            return None
        return table[:, begin:] if positions is None else table[:, positions].unsqueeze(2)

    def read(
        self,
        tokens: Float[Tensor, "batch seq dim"],
        landscape: int,
        real: Bool[Tensor, "batch seq"] | None = None,
        documents: Int32[Tensor, "batch seq"] | None = None,
    ) -> Context:
        """Read a context from its beginning.

        Args:
            tokens: embedded.
            landscape: index.
            real: False where a row is padded on the left.
            documents: of the tokens, where they shall not see each other's; not in a padded row.
        """
        visible = positions = None
        if documents is not None:
            visible, positions = visible_tokens(documents), places_within(documents)
        vector = self._vector(landscape, tokens.device)
        if self.variant == "time_embed":
            assert vector is not None
            # The landscape's vector stands right before the first real token, so that distances are as without padding.
            front = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
            first = front if real is None else (~real).sum(1, keepdim=True)
            columns = torch.arange(tokens.shape[1] + 1, device=tokens.device)
            tokens = torch.cat((tokens[:, :1], tokens), dim=1)
            tokens = torch.where((columns == first)[..., None], vector.to(tokens.dtype), tokens)
            real = None if real is None else columns >= first
            if visible is not None and positions is not None:
                visible, positions = F.pad(visible, (1, 0, 1, 0)), F.pad(positions + 1, (1, 0))
                visible[:, :, 0] = True
        if real is not None:
            size = tokens.shape[1]
            earlier = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()
            itself = torch.eye(size, dtype=torch.bool, device=tokens.device)  # or padding would see nothing at all
            visible = (earlier & real[:, None]) | itself
        visible = None if visible is None else visible[:, None]
        context = Context(landscape, [], real, None if documents is None else visible, positions)
        return self._through(tokens, context, visible)

    def extend(self, context: Context, token: Float[Tensor, "batch 1 dim"]) -> Context:
        """Return a context with one more token; what was read before is not read again."""
        real = context.real
        if real is not None:
            real = torch.cat((real, real.new_ones(len(real), 1)), dim=1)
        visible = token.new_ones(1, 1, 1, context.num_columns + 1, dtype=torch.bool)
        return self._through(token, replace(context, real=real), visible if real is None else real[:, None, None])

    def _through(self, x: Tensor, context: Context, visible: Tensor | None) -> Context:
        """Take new tokens through the blocks and return the context with them."""
        begin = context.num_columns if context.kept else 0
        vector = None if self.variant == "time_embed" else self._vector(context.landscape, x.device)
        table, x = self._table(begin, begin + x.shape[1], context.positions), self.dropout(x)
        kept = []
        for number, block in enumerate(self.blocks):
            past, last = context.kept[number] if context.kept else None, number == len(self.blocks) - 1
            x, seen = block(x, "keys" if last else "context", table, past, visible, vector)
            kept.append(torch.cat((past, seen), dim=3) if last and past is not None else seen)
        return replace(context, kept=kept)

    def energy(
        self, candidates: Float[Tensor, "batch rows dim"], context: Context, at_end: bool = False
    ) -> Float[Tensor, "batch rows"]:
        """Return the energy of every candidate.

        Args:
            candidates: embedded.
            context: under the landscape whose energy it shall be.
            at_end: all rows are candidates for the token behind the context; otherwise row i is one for the token
                behind the context's i-th.
        """
        columns, rows = context.num_columns, candidates.shape[1]
        begin = columns if at_end else columns - rows + 1
        visible = None if context.visible is None else context.visible[:, :, -rows:]
        behind = None if context.positions is None else context.positions[:, -rows:] + 1
        table = self._table(begin, columns + 1, behind)
        if at_end:
            table = None if table is None else table.expand(-1, rows, -1)
            everything = candidates.new_ones(1, 1, 1, columns, dtype=torch.bool)
            visible = everything if context.real is None else context.real[:, None, None]
        vector = None if self.variant == "time_embed" else self._vector(context.landscape, candidates.device)
        x = self.dropout(candidates)
        for block, kept in zip(self.blocks, context.kept, strict=True):
            x, _ = block(x, "candidates", table, kept, visible, vector)
        x = self.norm(x)
        if self.modulation is not None:
            x = modulated(x, *self.modulation(vector))
        return call_differentiably(self.head, x).squeeze(-1)
