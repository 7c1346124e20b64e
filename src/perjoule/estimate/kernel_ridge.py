"""Kernel ridge regression on static features, as PRE was published (del Rey et al.): RBF kernel, standardised features.

``α = (K + λ I)⁻¹ (y - ȳ)``, ``K_ij = exp(-γ |x_i - x_j|²)``. γ and λ are chosen by five-fold cross-validation over
runs, as there; the search is a grid instead of 100 random draws. *Its cross-validation is over runs and not over
configurations*: replicates of a configuration lie on both sides, so that it sees no reason to generalise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Job

Floats = NDArray[np.float64]
_GAMMAS = (0.01, 0.03, 0.1, 0.3)
_LAMBDAS = (1e-3, 1e-2, 1e-1)
_FOLDS = 5
_MAX_TUNING_ROWS = 400


def static_features(jobs: Sequence[Job]) -> Floats:
    """Return the (num_jobs, 10) features of PRE: what is known of data, network, device and host before the run."""
    return np.array(
        [
            (
                job.batch_size,
                job.ram_gb or 0.0,
                job.workload.train_samples,
                job.workload.validation_samples,
                job.workload.forward_flops,
                job.workload.sample_size,
                job.workload.sample_size,
                job.device.num_cores,
                job.device.memory_bytes,
                job.limit_w,
            )
            for job in jobs
        ],
        dtype=np.float64,
    ).reshape(len(jobs), 10)


@dataclass(frozen=True)
class KernelRidge:
    """A fitted regression.

    Args:
        center: (num_features,) means of the features.
        scale: (num_features,) standard deviations, 1 where all are equal.
        support: (num_rows, num_features) standardised features of the training rows.
        dual: (num_rows,) coefficients.
        offset: mean of the training targets.
        gamma: of the kernel.
        residual_sd: standard deviation of the cross-validated relative errors.
    """

    center: Floats
    scale: Floats
    support: Floats
    dual: Floats
    offset: float
    gamma: float
    residual_sd: float

    def predict(self, x: Floats) -> Floats:
        """Return the (num_rows,) predictions for (num_rows, num_features) features."""
        standard = (x - self.center) / self.scale
        found: Floats = _kernel(standard, self.support, self.gamma) @ self.dual + self.offset
        return found


def fit_kernel_ridge(x: Floats, y: Floats) -> KernelRidge:
    """Fit with the γ and λ of the least cross-validated squared error.

    Args:
        x: (num_rows, num_features) features.
        y: (num_rows,) targets, above 0.

    Raises:
        DataError: if there are fewer than ten rows.
    """
    if len(y) < 2 * _FOLDS:
        raise DataError(f"kernel ridge needs at least {2 * _FOLDS} measured runs, and {len(y)} have the figure")
    center, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    standard = (x - center) / scale
    order = np.random.default_rng(2022).permutation(len(y))
    tuning = order[:_MAX_TUNING_ROWS]
    tried = [
        (*_errors(standard[tuning], y[tuning], gamma, ridge), gamma, ridge) for gamma in _GAMMAS for ridge in _LAMBDAS
    ]
    _, relative, gamma, ridge = min(tried, key=lambda one: one[0])
    offset = float(y.mean())
    kernel = _kernel(standard, standard, gamma)
    dual = np.asarray(np.linalg.solve(kernel + ridge * np.eye(len(y)), y - offset), dtype=np.float64)
    return KernelRidge(center, scale, standard, dual, offset, gamma, relative)


def _errors(x: Floats, y: Floats, gamma: float, ridge: float) -> tuple[float, float]:
    """Return the cross-validated root mean squared error, absolute and relative."""
    kernel, errors = _kernel(x, x, gamma), np.zeros(len(y))
    for fold in range(_FOLDS):
        out = np.arange(len(y)) % _FOLDS == fold
        offset = y[~out].mean()
        inner = kernel[np.ix_(~out, ~out)] + ridge * np.eye(int((~out).sum()))
        errors[out] = kernel[np.ix_(out, ~out)] @ np.linalg.solve(inner, y[~out] - offset) + offset - y[out]
    return float(np.sqrt((errors**2).mean())), float(np.sqrt(((errors / y) ** 2).mean()))


def _kernel(a: Floats, b: Floats, gamma: float) -> Floats:
    """Return the (num_a, num_b) radial kernel."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    kernel: Floats = np.exp(-gamma * np.maximum(squares, 0.0))
    return kernel
