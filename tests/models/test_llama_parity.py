"""The Transformer is the function of Hugging Face's Llama: same weights, same logits, same gradients."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from perjoule.models.transformer import Transformer

RENAMED = {
    "embedding.weight": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "output.weight": ["lm_head.weight"],
}
RENAMED_IN_BLOCK = {
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention.qkv.weight": [f"self_attn.{name}_proj.weight" for name in "qkv"],
    "attention.output.weight": ["self_attn.o_proj.weight"],
    "ffn_norm.weight": ["post_attention_layernorm.weight"],
    "ffn.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "ffn.down.weight": ["mlp.down_proj.weight"],
}


def in_our_layout(theirs: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """Return Llama's tensors under our names; fused matrices are theirs, one below the other."""
    ours = {}
    for name, _ in model.named_parameters():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            parts = [f"model.layers.{number}.{part}" for part in RENAMED_IN_BLOCK[rest]]
        else:
            parts = RENAMED[name]
        ours[name] = torch.cat([theirs[part] for part in parts])
    return ours


def llama_like(model: Transformer) -> LlamaForCausalLM:
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            initializer_range=0.1,
        )
    )
    for name, parameter in llama.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return llama


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_logits_and_gradients_equal_those_of_llama(
    tiny: Callable[..., Transformer],
    batch: dict[str, Tensor],
    kernel: str,
    num_kv_heads: int,
    tie_embeddings: bool,
) -> None:
    model = tiny(
        attention=kernel, num_kv_heads=num_kv_heads, tie_embeddings=tie_embeddings, rope_theta=500.0, norm_eps=1e-3
    )
    llama = llama_like(model)
    model.load_state_dict(in_our_layout(dict(llama.named_parameters()), model))

    ours = model(batch, with_logits=True)
    theirs = llama(input_ids=batch["input_ids"]).logits
    loss = F.cross_entropy(theirs.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(ours.logits, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.loss, loss, rtol=0, atol=1e-5)

    ours.loss.backward()
    loss.backward()  # type: ignore[no-untyped-call]
    expected = in_our_layout({n: p.grad for n, p in llama.named_parameters() if p.grad is not None}, model)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-5, msg=f"gradient of {name}")
