"""A tiny model of every architecture, form, variant and kind of positions, with weights where every term counts."""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, get_args

import torch
from tests.models.ebt_cases import VARIANTS, tiny_ebt
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perjoule.models.contract import Output
from perjoule.models.layers.attention import Kernel
from perjoule.models.layers.positions import Positions
from perjoule.models.layers.retention import Form
from perjoule.models.longnet import LongNetConfig
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import TransformerConfig

VOCAB_SIZE, SEQ_LEN = 20, 24
SHAPE = {"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN}
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "init_std": 0.3}
PATTERNS: dict[str, Any] = {"segment_lengths": (3, 7, 16), "dilations": (1, 2, 4)}
MAGNETO: dict[str, Any] = {"norm": "layer", "bias": True, "sub_norm": True, "ffn": "gelu"}
POSITIONS = get_args(Positions)


class LanguageDecoder(Protocol):
    """What the tests ask of all of them."""

    def __call__(self, tensors: dict[str, Tensor], with_logits: bool = False) -> Output: ...
    def train(self, mode: bool = True) -> nn.Module: ...
    def prefill(self, input_ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any]: ...
    def decode(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]: ...


Build = Callable[[], LanguageDecoder]


def transformer(**settings: Any) -> Build:
    return lambda: TransformerConfig(**SIZES, **settings).build(SHAPE)


def longnet(**settings: Any) -> Build:
    return lambda: LongNetConfig(**SIZES, **(PATTERNS | settings)).build(SHAPE)


def retnet(**settings: Any) -> Build:
    """Return a RetNet in float64: the norm of a head amplifies rounding where queries and keys hardly match."""
    return lambda: RetNetConfig(**SIZES, **({"value_dim": 40, "chunk_len": 7} | settings)).build(SHAPE).double()


def ebt(thinking: dict[str, Any] | None = None, **settings: Any) -> Build:
    """Return an Energy-Based Transformer in float64: thinking with random weights amplifies rounding at each step."""
    return lambda: tiny_ebt({"step_size": 0.5, **(thinking or {})}, 0.2, SEQ_LEN, **settings).double()


BUILDS: dict[str, Build] = {
    **{f"transformer-{kind}": transformer(positions=kind) for kind in POSITIONS},
    **{f"transformer-{kernel}-grouped": transformer(attention=kernel, num_kv_heads=2) for kernel in get_args(Kernel)},
    **{f"longnet-{kind}": longnet(positions=kind) for kind in POSITIONS},
    **{f"longnet-magneto-{kind}": longnet(**MAGNETO, positions=kind) for kind in POSITIONS},
    "longnet-sparse": longnet(segment_lengths=(8,), dilations=(3,)),
    **{
        f"retnet-{form}-{kind}": retnet(retention=form, positions=kind)
        for form in get_args(Form)
        for kind in ("rotation", "none")
    },
    "retnet-geometric": retnet(decay="geometric"),
    **{f"ebt-{variant}-{kind}": ebt(variant=variant, positions=kind) for variant in VARIANTS for kind in POSITIONS},
    "ebt-tied-s2": ebt({"preset": "s2", "replay_fraction": 0.0}, tie_candidates=True),
}


@cache
def built(name: str) -> LanguageDecoder:
    """Return the model of this name, the same every time; in evaluation."""
    torch.manual_seed(0)
    model = BUILDS[name]()
    model.train(False)
    return model


def all_logits(model: LanguageDecoder, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Return the logits behind every token of whole sequences."""
    tensors = {"input_ids": input_ids, "labels": input_ids}
    if documents is not None:
        tensors["documents"] = documents
    logits = model(tensors, with_logits=True).logits
    assert logits is not None
    return logits.detach()


def loss_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradient of every parameter by name."""
    model.zero_grad()
    loss = model(batch).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(gradients) == sum(weight.requires_grad for weight in model.parameters())
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def counted_flops_per_token(model: nn.Module, seq_len: int) -> float:
    """Return what torch counts in one forward and backward pass over two samples, on the meta device."""
    tokens = torch.zeros(2, seq_len, dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        model({"input_ids": tokens, "labels": tokens}).loss.backward()
    return counter.get_total_flops() / (2 * seq_len)


def on_the_right(tokens: Tensor, lengths: list[int], columns: int) -> tuple[Tensor, Tensor]:
    """Return the first tokens of each row on the right, behind other numbers, and the mask."""
    prompts = torch.randint(VOCAB_SIZE, (len(lengths), columns))
    mask = torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]
    for row, length in enumerate(lengths):
        prompts[row, columns - length :] = tokens[row, :length]
    return prompts, mask
