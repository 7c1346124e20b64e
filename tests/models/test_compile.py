from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from perjoule.models.transformer import Transformer


def assert_compiled_equals_eager(model: Transformer, batch: dict[str, Tensor], backend: str, autocast: bool) -> None:
    torch.compiler.reset()
    results = []
    for step in (model, torch.compile(model, fullgraph=True, backend=backend)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = step(batch).loss
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3 if autocast else 1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
@pytest.mark.parametrize(("saving", "autocast"), [(False, False), (True, True)])
def test_whole_step_is_one_graph(
    tiny: Callable[..., Transformer], batch: dict[str, Tensor], kernel: str, saving: bool, autocast: bool
) -> None:
    model = tiny(
        num_kv_heads=2,
        attention=kernel,
        activation_checkpointing=saving,
        loss_chunk_rows=50 if saving else None,
    )
    assert_compiled_equals_eager(model, batch, "aot_eager", autocast)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while its code generator is imported
def test_generated_code_computes_the_same_model(tiny: Callable[..., Transformer], batch: dict[str, Tensor]) -> None:
    assert_compiled_equals_eager(tiny(num_layers=1, attention="blocked"), batch, "inductor", autocast=False)
