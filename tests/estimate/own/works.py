"""Steps whose work and cost are known by formula."""

from perjoule.estimate.own.sample import Sample
from perjoule.estimate.own.work import Work


def work(**changed: float | str) -> Work:
    """Return a step of a small model in float32, with some amounts changed."""
    facts: dict[str, float | str] = {
        "float32_flops": 1e10,
        "bf16_flops": 0.0,
        "attention_flops": 1e9,
        "bf16_attention_flops": 0.0,
        "product_bytes": 2e8,
        "moved_bytes": 8e8,
        "bf16_bytes": 0.0,
        "strided_bytes": 1e8,
        "num_calls": 800.0,
        "trained_parameters": 1e6,
        "forward_share": 1 / 3,
        "weight_bytes": 1.2e7,
        "activation_bytes": 1e8,
        "peak_bytes": 1.2e8,
        "computes_in": "float32",
    }
    return Work(**(facts | changed))  # type: ignore[arg-type]


def sample(of: Work, step_s: float, name: str = "one", step_j: float | None = None) -> Sample:
    return Sample(name, of, step_s, 2 * step_s, step_j, "measured: cpu", 10)
