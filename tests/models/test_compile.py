from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from perjoule.models.transformer import Transformer


def assert_compiled_equals_eager(model: Transformer, batch: dict[str, Tensor], backend: str) -> None:
    torch.compiler.reset()
    eager = model(batch, with_logits=True)
    expected = torch.autograd.grad(eager.loss, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    output = compiled(batch, with_logits=True)
    actual = torch.autograd.grad(output.loss, list(model.parameters()))
    torch.testing.assert_close(output.logits, eager.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
@pytest.mark.parametrize("saving", [False, True])
def test_whole_step_is_one_graph(
    tiny: Callable[..., Transformer], batch: dict[str, Tensor], kernel: str, saving: bool
) -> None:
    model = tiny(
        num_kv_heads=2,
        attention=kernel,
        activation_checkpointing=saving,
        loss_chunk_rows=50 if saving else None,
    )
    assert_compiled_equals_eager(model, batch, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while its code generator is imported
def test_generated_code_computes_the_same_model(tiny: Callable[..., Transformer], batch: dict[str, Tensor]) -> None:
    assert_compiled_equals_eager(tiny(num_layers=1, attention="blocked"), batch, backend="inductor")
