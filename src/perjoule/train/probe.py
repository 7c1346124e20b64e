"""Short measurements of this machine: matrix products per precision, attention kernels, memory bandwidth.

Every probe takes the best of several repetitions (what the machine can do, not what its other tenants left over),
states its error against float64, and is kept in the machine's profile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from perjoule.core.units import si
from perjoule.measure.machine import MachineProfile, cpu_info

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 256, 768), (2048, 1024, 1024))
"""(rows, inner, columns) of the products; the peak is the best over all of them."""
ACCURATE = 1e-5
"""Largest relative error of a product that still counts as float32."""
_process = {"allocator": "system"}


@dataclass(frozen=True)
class MatmulRate:
    """How fast and how exactly this machine multiplies matrices in one precision.

    Args:
        flops: floating-point operations per second, best over ``SHAPES``.
        error: relative error against float64, Frobenius norm, worst over ``SHAPES``.
    """

    flops: float
    error: float


def best_s(run: Callable[[], Any], budget_s: float) -> float:
    """Return the shortest time of one call, after one call to warm up, repeating for about ``budget_s``."""
    run()
    best, end = float("inf"), time.perf_counter() + budget_s
    while True:
        begun = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - begun)
        if now > end:
            return best


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 in hardware; emulated bf16 is far slower than float32."""
    return bool(cpu_info()["flags"] & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def matmul_rates(profile: MachineProfile, budget_s: float = 0.06, again: bool = False) -> dict[str, MatmulRate]:
    """Return the rate of ``float32-highest``, ``float32-medium`` and, where the CPU has it, ``bf16``.

    Args:
        profile: read first, filled afterwards.
        budget_s: time for each shape and precision.
        again: measure even if the rates are known, and keep the better of both: a busy machine can only seem slower.
    """
    key = matmul_key()
    known: dict[str, dict[str, float]] = profile.get(key) or {}
    if not known or again:
        measured = {name: asdict(rate) for name, rate in _measure_matmul(budget_s).items()}
        for name, rate in measured.items():
            rate["flops"] = max(rate["flops"], known.get(name, rate)["flops"])
        known = measured
        profile.put(key, known)
    return {name: MatmulRate(**rate) for name, rate in known.items()}


def matmul_key() -> str:
    """Return the name under which a profile keeps the rates of the present threads and allocator."""
    return f"matmul/{_here()}"


def note_allocator(name: str) -> None:
    """Note what serves this process's memory from now on; it cannot be undone within the process.

    Args:
        name: ``keep`` or ``system``, as ``backend.allocator``.
    """
    _process["allocator"] = name


def _here() -> str:
    """Return what of this process decides the times of a probe: new pages are cleared, which takes time."""
    return f"threads={torch.get_num_threads()}/{_allocator()}"


def _allocator() -> str:
    return f"allocator={_process['allocator']}"


def _measure_matmul(budget_s: float) -> dict[str, MatmulRate]:
    """Measure every precision that this CPU has."""
    before = torch.get_float32_matmul_precision()
    rates = {}
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            rates[f"float32-{precision}"] = _matmul_rate(torch.float32, budget_s)
    finally:
        torch.set_float32_matmul_precision(before)
    if cpu_has_bf16():
        rates["bf16"] = _matmul_rate(torch.bfloat16, budget_s)
    return rates


def _matmul_rate(dtype: torch.dtype, budget_s: float) -> MatmulRate:
    """Measure products of ``SHAPES`` in one type under the current float32 setting."""
    generator = torch.Generator().manual_seed(0)
    flops, error = 0.0, 0.0
    for rows, inner, columns in SHAPES:
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        a, b = left.to(dtype), right.to(dtype)
        flops = max(flops, 2 * rows * inner * columns / best_s(partial(torch.mm, a, b), budget_s))
        sample = slice(0, 64)  # the rows are alike; 64 of them tell the error
        exact = left[sample].double() @ right.double()
        error = max(error, float(((a @ b)[sample].double() - exact).norm() / exact.norm()))
    return MatmulRate(flops, error)


def best_threads(profile: MachineProfile, most: int, budget_s: float = 0.1) -> tuple[int, str]:
    """Return the number of threads that multiplies fastest, and the figures behind it.

    Fewer than ``most`` are taken only if they are a tenth faster, so that a neighbour's burst of work does not decide.

    Args:
        profile: read first, filled afterwards.
        most: the cores that this process may use; half of them is tried as well, for cores that share their units.
        budget_s: time for each number.
    """
    key = threads_key(most)
    stored = profile.get(key)
    if stored is None:
        before = torch.get_num_threads()
        left, right = torch.randn(2048, 256), torch.randn(256, 688)
        stored = {}
        for count in sorted({most, max(1, most // 2)}):
            torch.set_num_threads(count)
            stored[str(count)] = best_s(lambda: torch.nn.functional.silu(left @ right), budget_s)
        torch.set_num_threads(before)
        profile.put(key, stored)
    fastest = min(stored, key=lambda count: stored[count])
    chosen = int(fastest) if stored[fastest] < 0.9 * stored[str(most)] else most
    return chosen, ", ".join(f"{count} {si(seconds, 's')}" for count, seconds in stored.items())


def threads_key(most: int) -> str:
    """Return the name under which a profile keeps what numbers of threads up to ``most`` take."""
    return f"threads/most={most}/{_allocator()}"


def optimizer_seconds(profile: MachineProfile, num_weights: int = 5_000_000, budget_s: float = 0.2) -> dict[str, float]:
    """Return the seconds of one AdamW step over one large matrix, fused and as torch's plain loop.

    Args:
        profile: read first, filled afterwards.
        num_weights: weights in the matrix.
        budget_s: time for each kind.
    """
    key = f"adamw/{num_weights}/{_here()}"
    stored = profile.get(key)
    if stored is None:
        stored = {}
        for name, fused in (("fused", True), ("plain", False)):
            weights = torch.nn.Parameter(torch.zeros(num_weights))
            weights.grad = torch.ones(num_weights)
            optimizer = torch.optim.AdamW([weights], fused=fused, foreach=False)
            stored[name] = best_s(optimizer.step, budget_s)
        profile.put(key, stored)
    return dict(stored)


def attention_seconds(
    profile: MachineProfile,
    kernels: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    budget_s: float = 0.15,
) -> dict[str, float]:
    """Return the seconds of one forward and backward pass of each attention kernel.

    Args:
        profile: read first, filled afterwards.
        kernels: causal attention of query, key and value, each of ``shape``.
        shape: (batch, heads, seq_len, head_dim).
        dtype: type of the inputs.
        budget_s: time for each kernel.
    """
    key = f"attention/{'x'.join(map(str, shape))}/{dtype}/{_here()}"
    stored = profile.get(key)
    if stored is None or set(stored) != set(kernels):
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]

        def run(kernel: Callable[..., torch.Tensor]) -> None:
            torch.autograd.grad(kernel(*inputs).float().sum(), inputs)

        stored = {name: best_s(partial(run, kernel), budget_s) for name, kernel in kernels.items()}
        profile.put(key, stored)
    return dict(stored)


def copy_bandwidth(profile: MachineProfile, num_bytes: int = 256_000_000) -> float:
    """Return the bytes per second read plus written when a block much larger than the caches is copied."""
    key = f"bandwidth/{_here()}"
    stored = profile.get(key)
    if stored is None:
        source = torch.ones(num_bytes // 4)
        target = torch.empty_like(source)
        stored = 2 * num_bytes / best_s(lambda: target.copy_(source), 0.5)
        profile.put(key, stored)
    return float(stored)
