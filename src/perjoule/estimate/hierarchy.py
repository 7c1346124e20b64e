"""A Gaussian model of measurements: the physical formula with hierarchical priors, and a smooth remainder.

With ``f`` the formula, ``θ`` the deviations of its latents with their prior ``N(0, Λ)`` and ``r`` a Gaussian process
for what the formula leaves over::

    log y = f(θ) + r + noise          linearised at the most probable θ: K = J Λ Jᵀ + K_r + σ²

One inverse of ``K`` gives predictions with their variance, and for any group of rows what would have been predicted
without them, which is how the intervals are calibrated (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, section 5.4.2, for single rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.estimate.contract import Job
from perjoule.estimate.step_model import LATENTS, Features, Floats, evaluate, features, group_labels

_ITERATIONS = 12
_FIT_SD = 0.15  # of a row around the formula, while the formula is fitted
_NOISE_SD = 0.02
_STEP = 1e-4
_SHARED = ""
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
    Remainder(0.10, ("device", "workload"), (1.2, 0.4, 0.7)),
    Remainder(0.08, ("device", "workload"), (4.0, 2.0, 2.0)),
    Remainder(0.10, ("workload",), (1.5, 0.5, 0.7)),
    Remainder(0.10, ("device", "architecture"), (1.5, 0.6, 0.7)),
    Remainder(0.04, ("device", "workload"), (0.4, 0.15, 0.4)),
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
            for kind, sd in {_SHARED: latent.shared, **latent.groups}.items():
                self._starts[name, kind] = len(sds)
                sds += [sd] * len(self._codes[kind])
        self.prior_sd: Floats = np.array(sds)

    def latents(self, rows: Rows, theta: Floats) -> dict[str, Floats]:
        """Return the logarithm of each latent in each row; what is unknown of a row deviates in nothing."""
        codes = self._row_codes(rows)
        found = {name: np.full(len(rows), np.log(latent.value)) for name, latent in LATENTS.items()}
        for (name, kind), start in self._starts.items():
            known = codes[kind] >= 0
            found[name][known] += theta[start + codes[kind][known]]
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
            for kind in (_SHARED, *LATENTS[name].groups):
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
        self._log_y = log_y
        self._design = Design(self.rows)
        self._theta = self._fit()
        value, derivatives, _ = self._design.jacobian(self.rows, self._theta)
        seen = self._seen
        self._jacobian = derivatives[seen]
        kernel = remainder_kernel(self.rows, self.rows)
        covariance = (self._jacobian * self._design.prior_sd**2) @ self._jacobian.T
        num_s = int(seen[0].sum())
        covariance[:num_s, :num_s] += kernel[np.ix_(seen[0], seen[0])]
        covariance[num_s:, num_s:] += kernel[np.ix_(seen[1], seen[1])]
        covariance[np.diag_indices_from(covariance)] += _NOISE_SD**2
        centred = (log_y - value)[seen] + self._jacobian @ self._theta
        self._inverse: Floats = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
        self._weights: Floats = self._inverse @ centred

    def _fit(self) -> Floats:
        """Return the most probable deviations, by Gauss-Newton steps with damping."""
        seen, prior = self._seen, 1 / self._design.prior_sd**2
        weight = self._row_weights()[seen] / _FIT_SD**2
        theta, damping = np.zeros(len(prior)), 0.0
        value, derivatives, _ = self._design.jacobian(self.rows, theta)
        loss = self._loss(value, theta, weight, prior)
        for _ in range(_ITERATIONS):
            jacobian = derivatives[seen]
            gradient = jacobian.T @ (weight * (self._log_y - value)[seen]) - prior * theta
            curvature = (jacobian * weight[:, None]).T @ jacobian + np.diag(prior * (1 + damping))
            candidate = theta + np.linalg.solve(curvature, gradient)
            found = self._design.jacobian(self.rows, candidate)
            new_loss = self._loss(found[0], candidate, weight, prior)
            if not new_loss < loss:
                damping = 4 * damping + 1
                continue
            converged = loss - new_loss < 1e-3 * abs(loss) + 1e-3
            theta, loss, damping = candidate, new_loss, damping / 4
            value, derivatives, _ = found
            if converged:
                break
        return theta

    def _row_weights(self) -> Floats:
        """Return the (2, num_rows) weights: many rows of one workload on one device say less than as many apart."""
        pairs = list(zip(self.rows.labels["device"], self.rows.labels["workload"], strict=True))
        count = {pair: pairs.count(pair) for pair in set(pairs)}
        weights = np.array([count[pair] ** -0.5 for pair in pairs])
        return np.stack([weights, weights])

    def _loss(self, value: Floats, theta: Floats, weight: Floats, prior: Floats) -> float:
        error = (self._log_y - value)[self._seen]
        return float((weight * error**2).sum() + (prior * theta**2).sum())

    def predict(self, jobs: Sequence[Job]) -> Prediction:
        """Predict the logarithms of seconds per epoch and watts of jobs."""
        rows = Rows(jobs)
        value, derivatives, unknown = self._design.jacobian(rows, self._theta)
        kernel = remainder_kernel(rows, self.rows)
        means, covers = [], []
        num_s = int(self._seen[0].sum())
        for output in (0, 1):
            covariance = (derivatives[output] * self._design.prior_sd**2) @ self._jacobian.T
            part = slice(None, num_s) if output == 0 else slice(num_s, None)
            covariance[:, part] += kernel[:, self._seen[output]]
            means.append(value[output] - derivatives[output] @ self._theta + covariance @ self._weights)
            covers.append(covariance)
        own = sum(part.sd**2 for part in REMAINDERS) + _NOISE_SD**2
        variances = []
        for left, right in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
            slope = left * derivatives[0] + right * derivatives[1]
            cover = left * covers[0] + right * covers[1]
            variance = (slope**2 * self._design.prior_sd**2).sum(axis=1) + own * (left**2 + right**2)
            for (name, kind), extra in unknown.items():
                sd = LATENTS[name].groups[kind]
                variance += sd**2 * (left * extra[0] + right * extra[1]) ** 2
            variance -= ((cover @ self._inverse) * cover).sum(axis=1)
            variances.append(np.maximum(variance, _NOISE_SD**2))
        return Prediction(np.stack(means), np.sqrt(np.stack(variances)))

    def covariance(self, jobs: Sequence[Job]) -> Floats:
        """Return the (num_jobs, num_jobs) covariance of the logarithms of jobs' joules, given what was measured.

        It does not depend on what will be measured, so that it tells which job is worth measuring.
        """
        rows = Rows(jobs)
        _, derivatives, unknown = self._design.jacobian(rows, self._theta)
        slope = derivatives.sum(axis=0)
        covariance = (slope * self._design.prior_sd**2) @ slope.T + 2 * remainder_kernel(rows, rows)
        for (name, kind), extra in unknown.items():
            labels, both = np.array(rows.labels[kind], dtype=np.str_), extra.sum(axis=0)
            same = labels[:, None] == labels[None, :]
            covariance += LATENTS[name].groups[kind] ** 2 * same * np.outer(both, both)
        cover = (slope * self._design.prior_sd**2) @ self._jacobian.T
        num_s, kernel = int(self._seen[0].sum()), remainder_kernel(rows, self.rows)
        cover[:, :num_s] += kernel[:, self._seen[0]]
        cover[:, num_s:] += kernel[:, self._seen[1]]
        given: Floats = covariance - cover @ self._inverse @ cover.T
        return given

    def leave_out(self, groups: Sequence[str]) -> Prediction:
        """Return the error of each row when it and all others of its group are predicted from the rest.

        The formula stays linearised at what all rows make most probable.

        Args:
            groups: (num_rows,) name of each row's group.

        Returns:
            As ``mean`` the (3, num_rows) errors of the logarithms of seconds, watts and joules, NaN where a row was not
            measured; as ``sd`` what they were predicted to be.
        """
        output, row = np.nonzero(self._seen)
        errors, sds = (np.full((3, len(self.rows)), np.nan) for _ in range(2))
        names = np.array(groups, dtype=np.str_)[row]
        for name in dict.fromkeys(groups):
            members = np.flatnonzero(names == name)
            block = np.linalg.inv(self._inverse[np.ix_(members, members)])
            error = block @ self._weights[members]
            errors[output[members], row[members]] = error
            sds[output[members], row[members]] = np.sqrt(np.diagonal(block))
            place = {(int(output[one]), int(row[one])): at for at, one in enumerate(members)}
            for (which, at), first in place.items():
                second = place.get((1, at))
                if which == 0 and second is not None:
                    variance = block[first, first] + block[second, second] + 2 * block[first, second]
                    errors[2, at], sds[2, at] = error[first] + error[second], np.sqrt(variance)
        return Prediction(errors, sds)
