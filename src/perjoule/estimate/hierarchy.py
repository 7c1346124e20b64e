"""A Gaussian model of measurements: the physical formula with hierarchical priors, and a smooth remainder.

With ``f`` the formula, ``θ`` the deviations of its latents with their prior ``N(0, Λ)`` and ``r`` a Gaussian process
for what the formula leaves over::

    log y = f(θ) + r + noise          linearised at the most probable θ: K = J Λ Jᵀ + D,  D = K_r + σ²

``r`` is shared within an architecture alone, so that ``D`` falls into small blocks, and ``K⁻¹`` is ``D⁻¹`` less a
product of as many columns as ``θ`` has entries (Woodbury). It gives predictions with their variance, and for any group
of rows what would have been predicted without them, which is how the intervals are calibrated (Rasmussen and Williams,
Gaussian Processes for Machine Learning, 2006, section 5.4.2, for single rows).

The widths of ``r`` are those at which all measurements together are most probable; halving or doubling any width in
``Λ`` changes that probability by less than a factor of e⁶, so that those are left at what was known before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.estimate.contract import Job
from perjoule.estimate.step_model import LATENTS, Features, Floats, evaluate, features, group_labels

_ITERATIONS = 12
_NOISE_SD = 0.02
_STEP = 1e-4
_DRAWS = 300
_SHARED = ""  # the group of all rows
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Remainder:
    """A part of the Gaussian process for what the formula leaves over.

    Args:
        sd: its standard deviation.
        same: rows share it if they agree in these: ``device``, ``architecture``, ``workload``.
        lengths: how far the logarithms of batch size, power limit and sample size may differ.
    """

    sd: float
    same: tuple[str, ...]
    lengths: tuple[float, float, float]


REMAINDERS = (
    Remainder(0.06, ("device", "workload"), (1.2, 0.4, 0.7)),
    Remainder(0.06, ("device", "workload"), (4.0, 2.0, 2.0)),
    Remainder(0.06, ("workload",), (1.5, 0.5, 0.7)),
    Remainder(0.06, ("device", "architecture"), (1.5, 0.6, 0.7)),
    Remainder(0.025, ("device", "workload"), (0.4, 0.15, 0.4)),
)


class Rows:
    """Jobs as the arrays that the model works on."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.x: Features = features(jobs)
        self.labels = group_labels(jobs)
        self.labels["workload"] = ["/".join(job.workload_key) for job in jobs]
        logs = (self.x.batch, self.x.limit_w / self.x.tdp_w, self.x.size)
        self.smooth: Floats = np.log(np.stack(logs, axis=1)).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.x)


class Design:
    """Which deviations (columns of ``θ``) make up the latents of a row: one block per latent and kind of group."""

    def __init__(self, rows: Rows) -> None:
        self._codes = {
            kind: {label: code for code, label in enumerate(sorted(set(labels)))}
            for kind, labels in rows.labels.items()
        }
        self._codes[_SHARED] = {"": 0}
        self._starts: dict[tuple[str, str], int] = {}
        sds: list[float] = []
        for name, latent in LATENTS.items():
            for kind, sd in latent.deviations.items():
                self._starts[name, kind] = len(sds)
                sds += [sd] * len(self._codes[kind])
        self.prior_sd: Floats = np.array(sds)

    def latents(self, rows: Rows, theta: Floats, random: np.random.Generator | None = None) -> dict[str, Floats]:
        """Return the logarithm of each latent in each row.

        Args:
            rows: whose.
            theta: deviations of the groups that were measured.
            random: draws the deviations of those that were not, one for all rows of a group; None: they are 0.
        """
        codes = self._row_codes(rows)
        found = {name: np.full(len(rows), np.log(latent.value)) for name, latent in LATENTS.items()}
        for (name, kind), start in self._starts.items():
            known = codes[kind] >= 0
            found[name][known] += theta[start + codes[kind][known]]
            if random is not None and not known.all():
                _, group = np.unique(np.array(rows.labels[kind])[~known], return_inverse=True)
                found[name][~known] += LATENTS[name].groups[kind] * random.standard_normal(group.max() + 1)[group]
        return found

    def _row_codes(self, rows: Rows) -> dict[str, Ints]:
        """Return the number of each row's group among those that were measured; -1 for one that was not."""
        codes = {
            kind: np.array([table.get(label, -1) for label in rows.labels[kind]], dtype=np.int64)
            for kind, table in self._codes.items()
            if kind != _SHARED
        }
        return {**codes, _SHARED: np.zeros(len(rows), dtype=np.int64)}

    def jacobian(self, rows: Rows, theta: Floats) -> tuple[Floats, Floats, dict[tuple[str, str], Floats]]:
        """Return the formula at ``theta``, its derivatives, and the derivatives by what the design does not have.

        Returns:
            (2, num_rows) logarithms of seconds and watts; (2, num_rows, num_deviations) derivatives; and for each
            latent and kind of group the (2, num_rows) derivatives in rows whose group is unknown, 0 in others.
        """
        latents, codes = self.latents(rows, theta), self._row_codes(rows)
        value = evaluate(rows.x, latents)
        derivatives = np.zeros((2, len(rows), len(theta)))
        unknown: dict[tuple[str, str], Floats] = {}
        every = np.arange(len(rows))
        for name in LATENTS:
            slope = (evaluate(rows.x, {**latents, name: latents[name] + _STEP}) - value) / _STEP
            for kind in LATENTS[name].deviations:
                known = codes[kind] >= 0
                derivatives[:, every[known], self._starts[name, kind] + codes[kind][known]] = slope[:, known]
                if not known.all():
                    unknown[name, kind] = np.where(known, 0.0, slope)
        return value, derivatives, unknown


def remainder_kernel(a: Rows, b: Rows) -> Floats:
    """Return the (num_a, num_b) covariance of what the formula leaves over."""
    same: dict[str, NDArray[np.bool_]] = {}
    for kind in ("device", "architecture", "workload"):
        codes = {label: code for code, label in enumerate(dict.fromkeys([*a.labels[kind], *b.labels[kind]]))}
        left, right = (np.array([codes[label] for label in rows.labels[kind]], dtype=np.int64) for rows in (a, b))
        same[kind] = left[:, None] == right[None, :]
    squares = (a.smooth[:, None, :] - b.smooth[None, :, :]) ** 2
    total = np.zeros((len(a), len(b)))
    for part in REMAINDERS:
        near: Floats = np.exp(-0.5 * (squares @ (1 / np.array(part.lengths) ** 2)))
        for kind in part.same:
            near *= same[kind]
        total += part.sd**2 * near
    return total


@dataclass(frozen=True)
class Prediction:
    """Mean and covariance of the logarithms of seconds and watts.

    Args:
        mean: (2, num_rows).
        sd: (3, num_rows) standard deviations of seconds, watts, and of their product, the joules.
    """

    mean: Floats
    sd: Floats


class Hierarchy:
    """The model, fitted to rows.

    Args:
        jobs: what was measured.
        log_y: (2, num_rows) logarithms of seconds per epoch and watts; NaN where one was not measured.
    """

    def __init__(self, jobs: Sequence[Job], log_y: Floats) -> None:
        self.rows = Rows(jobs)
        self._seen = np.isfinite(log_y)
        self._output, self._row = np.nonzero(self._seen)
        self._inverse = self._remainder_inverse()
        self._design = Design(self.rows)
        self._fit(log_y[self._seen])

    def _remainder_inverse(self) -> Floats:
        """Return the inverse of the covariance of what the formula leaves over.

        It is shared within an architecture alone, so that the covariance falls into blocks.
        """
        kernel = remainder_kernel(self.rows, self.rows)
        labels = np.array(self.rows.labels["architecture"], dtype=np.str_)[self._row]
        inverse = np.zeros((len(labels), len(labels)))
        for output in (0, 1):
            for label in dict.fromkeys(labels):
                at = np.flatnonzero((labels == label) & (self._output == output))
                rows = self._row[at]
                block = kernel[np.ix_(rows, rows)] + _NOISE_SD**2 * np.eye(len(at))
                inverse[np.ix_(at, at)] = np.linalg.inv(block)
        return inverse

    def _fit(self, log_y: Floats) -> None:
        """Find the most probable deviations by Gauss-Newton steps with damping, and linearise there."""
        prior = self._design.prior_sd**-2
        theta, damping, loss = np.zeros(len(prior)), 0.0, np.inf
        candidate = theta
        for _ in range(_ITERATIONS):
            value, derivatives, _ = self._design.jacobian(self.rows, candidate)
            error = log_y - value[self._seen]
            weighed = self._inverse @ error
            new_loss = float(error @ weighed + candidate @ (prior * candidate))
            if new_loss < loss:
                converged = loss - new_loss < 1e-3 * loss + 1e-3
                theta, loss, damping = candidate, new_loss, damping / 4
                self._jacobian = derivatives[self._seen]
                self._whitened: Floats = self._inverse @ self._jacobian
                gradient = self._jacobian.T @ weighed - prior * theta
                information = self._jacobian.T @ self._whitened
                residual = error
                if converged:
                    break
            else:
                damping = 4 * damping + 1
            candidate = theta + np.linalg.solve(information + np.diag(prior * (1 + damping)), gradient)
        self._theta = theta
        self._covariance: Floats = np.asarray(np.linalg.inv(information + np.diag(prior)), dtype=np.float64)
        centred = residual + self._jacobian @ theta
        self._weights: Floats = self._inverse @ centred
        self._weights -= self._whitened @ (self._covariance @ (self._whitened.T @ centred))

    def predict(self, jobs: Sequence[Job]) -> Prediction:
        """Predict the logarithms of seconds per epoch and watts of jobs."""
        rows = Rows(jobs)
        value, derivatives, unknown = self._design.jacobian(rows, self._theta)
        kernel = remainder_kernel(rows, self.rows)
        shift = self._design.prior_sd**2 * (self._jacobian.T @ self._weights) - self._theta
        means, left, slopes = [], [], []
        own = sum(part.sd**2 for part in REMAINDERS) + _NOISE_SD**2
        for output in (0, 1):
            part = self._output == output
            near = kernel[:, self._row[part]]
            means.append(value[output] + derivatives[output] @ shift + near @ self._weights[part])
            # The remainder given θ, and what is left of θ's share.
            left.append(own - ((near @ self._inverse[np.ix_(part, part)]) * near).sum(axis=1))
            slopes.append(derivatives[output] - near @ self._whitened[part])
        variances = []
        for first, second in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
            slope = first * slopes[0] + second * slopes[1]
            variance = ((slope @ self._covariance) * slope).sum(axis=1) + first * left[0] + second * left[1]
            for (name, kind), extra in unknown.items():
                variance += LATENTS[name].groups[kind] ** 2 * (first * extra[0] + second * extra[1]) ** 2
            variances.append(np.maximum(variance, _NOISE_SD**2))
        return Prediction(np.stack(means), np.sqrt(np.stack(variances)))

    def covariance(self, jobs: Sequence[Job]) -> Floats:
        """Return the (num_jobs, num_jobs) covariance of the logarithms of jobs' joules, given what was measured.

        It does not depend on what will be measured, so that it tells which job is worth measuring. The deviations are
        drawn, not linearised: whether a step waits for the processor decides what its measurement would tell.
        """
        rows, random = Rows(jobs), np.random.default_rng(0)
        near = remainder_kernel(rows, self.rows)[:, self._row]
        root = np.linalg.cholesky(self._covariance)
        drawn = np.zeros((_DRAWS, len(rows)))
        for draw in range(_DRAWS):
            shift = root @ random.standard_normal(len(root))
            latents = self._design.latents(rows, self._theta + shift, random)
            drawn[draw] = evaluate(rows.x, latents).sum(axis=0) - near @ (self._whitened @ shift)
        rest = 2 * remainder_kernel(rows, rows) - near @ self._inverse @ near.T
        covariance: Floats = np.cov(drawn, rowvar=False) + rest
        return covariance

    def leave_out(self, groups: Sequence[str]) -> Prediction:
        """Return the error of each row when it and all others of its group are predicted from the rest.

        The formula stays linearised at what all rows make most probable.

        Args:
            groups: (num_rows,) name of each row's group.

        Returns:
            As ``mean`` the (3, num_rows) errors of the logarithms of seconds, watts and joules, NaN where a row was not
            measured; as ``sd`` what they were predicted to be.
        """
        errors, sds = (np.full((3, len(self.rows)), np.nan) for _ in range(2))
        names = np.array(groups, dtype=np.str_)[self._row]
        for name in dict.fromkeys(groups):
            members = np.flatnonzero(names == name)
            output, row = self._output[members], self._row[members]
            inside = self._whitened[members]
            block = np.linalg.inv(self._inverse[np.ix_(members, members)] - inside @ self._covariance @ inside.T)
            error = block @ self._weights[members]
            errors[output, row] = error
            sds[output, row] = np.sqrt(np.diagonal(block))
            both, first, second = np.intersect1d(
                row[output == 0], row[output == 1], assume_unique=True, return_indices=True
            )
            first, second = np.flatnonzero(output == 0)[first], np.flatnonzero(output == 1)[second]
            errors[2, both] = error[first] + error[second]
            sds[2, both] = np.sqrt(block[first, first] + block[second, second] + 2 * block[first, second])
        return Prediction(errors, sds)
