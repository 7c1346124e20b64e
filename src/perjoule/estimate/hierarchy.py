"""A Gaussian model of measurements: the physical formula with hierarchical priors, and a smooth remainder.

With ``f`` the formula, ``θ`` the deviations of its latents with their prior ``N(0, Λ)`` and ``r`` a Gaussian process
for what the formula leaves over::

    log y = f(θ) + r + noise          linearised at the most probable θ: K = J Λ Jᵀ + D,  D = K_r + σ²

What is new is drawn from its prior through the formula as it is (:meth:`Hierarchy.draw`). ``r`` is shared within an
architecture alone, so that ``D`` falls into small blocks, and ``K⁻¹`` is ``D⁻¹`` less a product of as many columns as
``θ`` has entries (Woodbury). It gives predictions with their variance, and for any group
of rows what would have been predicted without them, which is how the intervals are calibrated (Rasmussen and Williams,
Gaussian Processes for Machine Learning, 2006, section 5.4.2, for single rows).

How wide the priors of devices, of hosts and of what a network does on one device are is chosen by leaving devices out
(:mod:`perjoule.estimate.choice`); the other widths are what was believed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from perjoule.estimate.contract import Job
from perjoule.estimate.step_model import WIDTHS, Features, Floats, Latent, Widths, evaluate, features, group_labels

_ITERATIONS = 12
_NOISE_SD = 0.02
_STEP = 1e-4
_DRAWS = 400
_ROWS_AT_ONCE = 500
_FREEDOM = 5.0  # of Student's distribution, by which what was never measured deviates
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


def remainders(widths: Widths) -> tuple[Remainder, ...]:
    """Return the parts of the Gaussian process."""
    return (
        Remainder(0.06, ("device", "workload"), (1.2, 0.4, 0.7)),
        Remainder(widths.pair, ("device", "workload"), (4.0, 2.0, 2.0)),
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

    def __init__(self, rows: Rows, latents: Mapping[str, Latent]) -> None:
        self._latents = latents
        self._codes = {
            kind: {label: code for code, label in enumerate(sorted(set(labels)))}
            for kind, labels in rows.labels.items()
        }
        self._codes[_SHARED] = {"": 0}
        self._starts: dict[tuple[str, str], int] = {}
        sds: list[float] = []
        for name, latent in latents.items():
            for kind, sd in latent.deviations.items():
                self._starts[name, kind] = len(sds)
                sds += [sd] * len(self._codes[kind])
        self.prior_sd: Floats = np.array(sds)

    def latents(self, rows: Rows, theta: Floats) -> dict[str, Floats]:
        """Return the logarithm of each latent in each row, where deviations of groups that were not measured are 0."""
        codes = self._row_codes(rows)
        found = {name: np.full(len(rows), np.log(latent.value)) for name, latent in self._latents.items()}
        for (name, kind), start in self._starts.items():
            known = codes[kind] >= 0
            found[name][known] += theta[start + codes[kind][known]]
        return found

    def draw(self, rows: Rows, thetas: Floats) -> dict[str, Floats]:
        """Return draws of the logarithm of each latent in each row: (num_draws, num_rows).

        Args:
            rows: whose.
            thetas: (num_draws, num_deviations) draws of the groups that were measured.
        """
        codes, num = self._row_codes(rows), len(thetas)
        found = {name: np.full((num, len(rows)), np.log(one.value)) for name, one in self._latents.items()}
        for (name, kind), start in self._starts.items():
            known = codes[kind] >= 0
            found[name][:, known] += thetas[:, start + codes[kind][known]]
            for label in {rows.labels[kind][at] for at in np.flatnonzero(~known)}:
                mine = np.array([one == label for one in rows.labels[kind]])
                scale = _student_scale(np.random.default_rng(crc32(f"{kind} {label}".encode())), num)
                normal = np.random.default_rng(crc32(f"{kind} {label} {name}".encode())).standard_normal(num)
                found[name][:, mine] += (self._latents[name].groups[kind] * normal * scale)[:, None]
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
        for name in self._latents:
            slope = (evaluate(rows.x, {**latents, name: latents[name] + _STEP}) - value) / _STEP
            for kind in self._latents[name].deviations:
                known = codes[kind] >= 0
                derivatives[:, every[known], self._starts[name, kind] + codes[kind][known]] = slope[:, known]
                if not known.all():
                    unknown[name, kind] = np.where(known, 0.0, slope)
        return value, derivatives, unknown


def remainder_kernel(a: Rows, b: Rows, widths: Widths = WIDTHS) -> Floats:
    """Return the (num_a, num_b) covariance of what the formula leaves over."""
    same: dict[str, NDArray[np.bool_]] = {}
    for kind in ("device", "architecture", "workload"):
        codes = {label: code for code, label in enumerate(dict.fromkeys([*a.labels[kind], *b.labels[kind]]))}
        left, right = (np.array([codes[label] for label in rows.labels[kind]], dtype=np.int64) for rows in (a, b))
        same[kind] = left[:, None] == right[None, :]
    squares = (a.smooth[:, None, :] - b.smooth[None, :, :]) ** 2
    total = np.zeros((len(a), len(b)))
    for part in remainders(widths):
        near: Floats = np.exp(-0.5 * (squares @ (1 / np.array(part.lengths) ** 2)))
        for kind in part.same:
            near *= same[kind]
        total += part.sd**2 * near
    return total


def _student_scale(random: np.random.Generator, num: int) -> Floats:
    """Draw what makes Gaussian deviations those of Student's distribution."""
    return 1 / np.sqrt(random.chisquare(_FREEDOM, num) / _FREEDOM)


def _student(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Draw from Student's distribution."""
    return random.standard_normal(shape) * _student_scale(random, shape[0]).reshape(-1, 1)


def _evaluate_draws(rows: Rows, latents: Mapping[str, Floats]) -> Floats:
    """Return the (2, num_draws, num_rows) logarithms of seconds and watts for (num_draws, num_rows) latents."""
    num = len(next(iter(latents.values())))
    x = Features(*(np.tile(getattr(rows.x, one.name), num) for one in fields(Features)))
    return evaluate(x, {name: values.ravel() for name, values in latents.items()}).reshape(2, num, len(rows))


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
        widths: of the priors.
    """

    def __init__(self, jobs: Sequence[Job], log_y: Floats, widths: Widths = WIDTHS) -> None:
        self.rows = Rows(jobs)
        self._widths, self._latents = widths, widths.latents()
        self._seen = np.isfinite(log_y)
        self._output, self._row = np.nonzero(self._seen)
        self._inverse = self._remainder_inverse()
        self._design = Design(self.rows, self._latents)
        self._log_y: Floats = log_y[self._seen]
        self._drawn: tuple[Floats, Floats] | None = None
        self._fit(self._log_y)

    def _remainder_inverse(self) -> Floats:
        """Return the inverse of the covariance of what the formula leaves over.

        It is shared within an architecture alone, so that the covariance falls into blocks.
        """
        kernel = remainder_kernel(self.rows, self.rows, self._widths)
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
        kernel = remainder_kernel(rows, self.rows, self._widths)
        shift = self._design.prior_sd**2 * (self._jacobian.T @ self._weights) - self._theta
        means, left, slopes = [], [], []
        own = self._own_variance()
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
                variance += self._latents[name].groups[kind] ** 2 * (first * extra[0] + second * extra[1]) ** 2
            variances.append(np.maximum(variance, _NOISE_SD**2))
        return Prediction(np.stack(means), np.sqrt(np.stack(variances)))

    def _own_variance(self) -> float:
        """Return the variance of what the formula leaves over, and of the noise, of a row that nothing is known of."""
        return sum(part.sd**2 for part in remainders(self._widths)) + _NOISE_SD**2

    def draw(self, jobs: Sequence[Job], num: int = _DRAWS) -> Floats:
        """Draw from what is believed of jobs: what each row's figures are, and not how rows go together.

        The formula is not linearised here: whether a step waits for the device or the processor is what a new host
        decides. What was never measured deviates as Student's distribution says, one scale for all of a new device: the
        few devices that were measured cannot exclude one that is odd in everything. What is drawn for a group follows
        from its name, so that a job's figures do not depend on what is asked beside it.

        Args:
            jobs: that are asked.
            num: of draws.

        Returns:
            (2, num, num_jobs) logarithms of seconds per epoch and watts.
        """
        parts = [self._draw(jobs[at : at + _ROWS_AT_ONCE], num) for at in range(0, len(jobs), _ROWS_AT_ONCE)]
        return np.concatenate(parts, axis=2) if parts else np.zeros((2, num, 0))

    def _posterior(self, num: int) -> tuple[Floats, Floats]:
        """Return draws of the deviations, and what each leaves over of the measured rows.

        Returns:
            (num, num_deviations), and (num, num_values) remainders times the inverse of their covariance.
        """
        if self._drawn is None or len(self._drawn[0]) != num:
            normal = np.random.default_rng(0).standard_normal((len(self._covariance), num))
            most_probable = self._design.prior_sd**2 * (self._jacobian.T @ self._weights)
            thetas = (most_probable[:, None] + np.linalg.cholesky(self._covariance) @ normal).T
            formula = _evaluate_draws(self.rows, self._design.draw(self.rows, thetas))
            self._drawn = thetas, (self._log_y - formula[self._output, :, self._row].T) @ self._inverse
        return self._drawn

    def _draw(self, jobs: Sequence[Job], num: int) -> Floats:
        """Return what :meth:`draw` does, of as many rows as fit into memory."""
        rows, random = Rows(jobs), np.random.default_rng(1)
        near = remainder_kernel(rows, self.rows, self._widths)[:, self._row]
        thetas, left_over = self._posterior(num)
        drawn = _evaluate_draws(rows, self._design.draw(rows, thetas))
        own = self._own_variance()
        for output in (0, 1):
            part = self._output == output
            mine = near[:, part]
            drawn[output] += left_over[:, part] @ mine.T
            rest = own - ((mine @ self._inverse[np.ix_(part, part)]) * mine).sum(axis=1)
            drawn[output] += np.sqrt(np.maximum(rest, 0.0)) * _student(random, (num, 1))
        return drawn

    def covariance(self, jobs: Sequence[Job]) -> Floats:
        """Return the (num_jobs, num_jobs) covariance of the logarithms of jobs' joules, given what was measured.

        It does not depend on what will be measured, so that it tells which job is worth measuring. The deviations are
        drawn, not linearised: whether a step waits for the processor decides what its measurement would tell.
        """
        rows = Rows(jobs)
        near = remainder_kernel(rows, self.rows, self._widths)[:, self._row]
        thetas, left_over = self._posterior(_DRAWS)
        drawn = _evaluate_draws(rows, self._design.draw(rows, thetas)).sum(axis=0) + left_over @ near.T
        rest = 2 * remainder_kernel(rows, rows, self._widths) - near @ self._inverse @ near.T
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
