"""The same size, or the same cost: presets with which architectures can be compared on equal terms.

    match-<size>          as many weights in the body as the Transformer of that size, within 2 %
    match-<size>-flops    as many training FLOPs per token, within 5 %, at the length and the vocabulary in STATED

The body is everything but the embedding and what logits are read out with; the FLOPs are those of everything, the
vocabulary included. So a match in FLOPs holds where it is stated and not elsewhere: attention grows with the length,
and an Energy-Based Transformer reads out the vocabulary at every step. ``python -m perjoule.models.matched [size]``
prints what holds at other lengths and vocabularies.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from perjoule.core.errors import ConfigError, PerjouleError, suggestion
from perjoule.models import SHELF
from perjoule.models.contract import FlopsPerToken, Trainable, count_parameters

KINDS = ("transformer", "retnet", "longnet", "ebt")
"""The baseline, and what is compared with it."""


@dataclass(frozen=True)
class Data:
    """What a size is for.

    Args:
        seq_len: tokens of a sequence.
        vocab_size: of the tokenizer.
    """

    seq_len: int
    vocab_size: int


STATED: Mapping[str, Data] = {"1m": Data(256, 4096), "10m": Data(512, 8192), "100m": Data(1024, 32768)}
"""The data for which presets are matched in FLOPs."""


@dataclass(frozen=True)
class Matched:
    """One model of a comparison.

    Args:
        kind: of the model.
        preset: its name.
        body_parameters: weights besides the embeddings and the output matrix.
        parameters: all weights.
        flops: of training, per token.
        body_ratio: body parameters as a multiple of the Transformer's.
        full_ratio: FLOPs as a multiple of the Transformer's, attention counted as if it were not masked.
        causal_ratio: the same with what must at least be computed.
    """

    kind: str
    preset: str
    body_parameters: int
    parameters: int
    flops: FlopsPerToken
    body_ratio: float
    full_ratio: float
    causal_ratio: float


def build_on_meta(kind: str, preset: str, data: Data) -> nn.Module:
    """Build a model without memory.

    Raises:
        ConfigError: if the model has positions that cannot reach so far.
    """
    with torch.device("meta"):
        model: nn.Module = SHELF.load(kind)(preset=preset).build(
            {"seq_len": data.seq_len, "vocab_size": data.vocab_size}
        )
    return model


def matched_table(size: str, seq_len: int | None = None, vocab_size: int | None = None) -> list[Matched]:
    """Return the models of a size, the Transformer first: those of its parameters, then those of its FLOPs.

    Args:
        size: ``1m``, ``10m`` or ``100m``.
        seq_len: tokens of a sequence; None is that of :data:`STATED`.
        vocab_size: of the tokenizer; None is that of :data:`STATED`.

    Raises:
        ConfigError: if there is no such size.
    """
    if size not in STATED:
        raise ConfigError(f"unknown size {size!r}: {suggestion(size, STATED)}")
    data = Data(seq_len or STATED[size].seq_len, vocab_size or STATED[size].vocab_size)
    names = [(kind, f"match-{size}{suffix}") for suffix in ("", "-flops") for kind in KINDS]
    rows: list[Matched] = []
    for kind, preset in names:
        model = build_on_meta(kind, preset, data)
        assert isinstance(model, Trainable)
        body, flops = SHELF.load(kind)(preset=preset).num_body_parameters, model.flops_per_token(data.seq_len)
        first = rows[0] if rows else None
        rows.append(
            Matched(
                kind,
                preset,
                body,
                count_parameters(model),
                flops,
                body / first.body_parameters if first else 1.0,
                flops.full / first.flops.full if first else 1.0,
                flops.causal / first.flops.causal if first else 1.0,
            )
        )
    return rows


def text(size: str, data: Data) -> str:
    """Return the table of a size as text, with one line for each model.

    Raises:
        ConfigError: if there is no such size.
    """
    lines = [
        f"match-{size} at {data.seq_len} tokens, vocabulary of {data.vocab_size} (multiples of the Transformer's)",
        f"{'model':<12} {'preset':<18} {'body':>20} {'all':>9} {'FLOPs/token full':>22} {'causal':>22}",
    ]
    for row in matched_table(size, data.seq_len, data.vocab_size):
        body = f"{row.body_parameters / 1e6:9.3f} M ({row.body_ratio:5.3f})"
        full = f"{row.flops.full / 1e6:9.2f} M ({row.full_ratio:5.3f})"
        causal = f"{row.flops.causal / 1e6:9.2f} M ({row.causal_ratio:5.3f})"
        total = f"{row.parameters / 1e6:7.2f} M"
        lines.append(f"{row.kind:<12} {row.preset:<18} {body:>20} {total:>9} {full:>22} {causal:>22}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of one size or of all; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m perjoule.models.matched", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("size", nargs="?", help=f"{', '.join(STATED)}; all of them if it is left out")
    parser.add_argument("--seq-len", type=int, help="tokens of a sequence; otherwise the stated ones")
    parser.add_argument("--vocab-size", type=int, help="of the tokenizer; otherwise the stated one")
    options = parser.parse_args(arguments)
    try:
        for size in [options.size] if options.size else STATED:
            stated = STATED.get(size, Data(1, 1))
            print(text(size, Data(options.seq_len or stated.seq_len, options.vocab_size or stated.vocab_size)))
    except PerjouleError as error:
        parser.exit(error.exit_code, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
