"""What a run cost in joules: pure functions from its ledger to figures, and to one sheet per metered domain.

The total and the sheets are over everything that was metered, start-up and recomputed steps included. What a step, a
sample or a token cost is taken over the *measured window*, so that neither start-up nor compilation is part of it. A
domain that lies inside another one (the memory of a package that is metered as a whole) has a sheet and is not added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perjoule.core.phases import parent
from perjoule.core.units import J_PER_KWH
from perjoule.measure.ledger import Account, Bucket, Ledger, StepCurve, Total
from perjoule.report.carbon import Factors, segment_factors
from perjoule.report.quantity import Figure, Floats, Quantity, Unavailable
from perjoule.runs.step_table import Ints, StepTable
from perjoule.runs.tables import Run

UJ_PER_J = 1e6
MEASURED, MODELLED, PARTLY = "measured", "modelled", "partly modelled"
NO_METER = "no meter in this run"
ENERGY = (
    *("energy_j", "energy_window_j", "energy_per_step_j", "energy_per_sample_j", "energy_per_token_j"),
    *("energy_per_useful_token_j", "power_w", "flops_per_j", "carbon_gco2e", "water_l", "price"),
)
"""The figures that exist only if there is a ledger, the energy first."""
IF_GIVEN = ("water_l", "price")
"""These are shown only if the run's configuration has a factor for them."""


@dataclass(frozen=True)
class Sheet:
    """The ledger of one domain, all segments added up.

    Args:
        account: time, energy and interval of every bucket.
        counted: whether the domain is part of the run's total; if not, it lies inside one that is.
        num_segments: how many segments were added up.
        num_steps: optimizer steps that were taken in them, lost ones included.
        gco2e: grams of CO2 equivalent of every bucket, by name.
    """

    account: Account
    counted: bool
    num_segments: int
    num_steps: int
    gco2e: Mapping[str, float] | Unavailable

    @property
    def provenance(self) -> str:
        """Return the word for the domain's total."""
        return MODELLED if self.account.sensor.modelled else MEASURED


def sheets(run: Run, ledger: Ledger) -> tuple[Sheet, ...]:
    """Return one sheet per node and domain, those that are counted first."""
    factors, found = segment_factors(run, ledger), []
    added = {account.label for account in counted(ledger)}
    for account in ledger.merged():
        parts = [part for part in ledger.accounts if part.label == account.label]
        found.append(
            Sheet(
                account=replace(account, buckets=_ordered(account.buckets)),
                counted=account.label in added,
                num_segments=len(parts),
                num_steps=int(np.isin(run.steps.segment, [part.segment for part in parts]).sum()),
                gco2e=_by_bucket(parts, factors),
            )
        )
    return tuple(sorted(found, key=lambda sheet: not sheet.counted))


def _ordered(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Return the buckets with nested phases behind their parent."""
    place = {bucket.name: number for number, bucket in enumerate(buckets)}
    return tuple(sorted(buckets, key=lambda one: (place.get(parent(one.name), place[one.name]), place[one.name])))


def counted(ledger: Ledger) -> list[Account]:
    """Return the accounts, segment by segment, that are part of the run's total."""
    total = ledger.total()
    return [one for one in ledger.accounts if isinstance(total, Total) and one.label in total.domains]


def energy_figures(run: Run, ledger: Ledger) -> dict[str, Figure]:
    """Return the figures of :class:`~perjoule.report.summary.Summary` that are about energy, by their names there."""
    total, accounts = ledger.total(), counted(ledger)
    if not isinstance(total, Total):
        return dict.fromkeys(ENERGY, Unavailable(_why_none(ledger)))
    bounds = total.low_uj / UJ_PER_J, total.high_uj / UJ_PER_J
    energy = Quantity(total.energy_uj / UJ_PER_J, "J", _how(accounts, total), 1, bounds, _word(accounts))
    window, steps = _window(accounts, run.steps)
    per_token = _each(window, steps.tokens.sum(), "label positions, with ignored ones")
    return {
        "energy_j": energy,
        "energy_window_j": window,
        "energy_per_step_j": _each(window, len(steps), "steps"),
        "energy_per_sample_j": _each(window, steps.samples.sum(), "samples"),
        "energy_per_token_j": per_token,
        "energy_per_useful_token_j": _each(window, steps.useful.sum(), "label positions that are trained on"),
        "power_w": _power(window, float(steps.wall_s.sum())),
        "flops_per_j": _flops_per_j(run, per_token),
        **_consequences(accounts, segment_factors(run, ledger)),
    }


def missing_meters(ledger: Ledger) -> tuple[str, ...]:
    """Return for each meter that could not be read its kind, the reason and the remedy: ``rapl: no powercap here``."""
    return tuple(
        f"{kind}: {one.reason}" + (f" (remedy: {one.remedy})" if one.remedy else "") for kind, one in ledger.unavailable
    )


def _why_none(ledger: Ledger) -> str:
    missing = missing_meters(ledger)
    return f"no meter could be read; {'; '.join(missing)}" if missing else NO_METER


def _word(accounts: Sequence[Account]) -> str:
    modelled = {account.sensor.modelled for account in accounts}
    return PARTLY if len(modelled) > 1 else MODELLED if modelled == {True} else MEASURED


def _how(accounts: Sequence[Account], total: Total) -> str:
    """Return ``measured: gpu-0 (energy counter); modelled: cpu (CPU time); inside these: dram-0``."""
    words = []
    for word, modelled in ((MEASURED, False), (MODELLED, True)):
        methods = {one.sensor.domain: one.sensor.method for one in accounts if one.sensor.modelled == modelled}
        if methods:
            words.append(f"{word}: {', '.join(f'{domain} ({method})' for domain, method in methods.items())}")
    inside = [f"metered as well, but inside these: {', '.join(total.inside)}"] if total.inside else []
    return "; ".join([*words, *inside])


def _window(accounts: Sequence[Account], steps: StepTable) -> tuple[Figure, StepTable]:
    """Return the energy of the measured window, and its steps."""
    rows = steps.in_window
    if not rows.any():
        return Unavailable("no step after the warm-up" if len(steps) else "no step was completed"), steps.where(rows)
    metered = [(one, one.window_uj) for one in accounts if one.window_uj is not None]
    rows = rows & np.isin(steps.segment, [one.segment for one, _ in metered])
    window = steps.where(rows)
    num = {one.segment: one.window_steps for one, _ in metered}
    if not metered:
        return Unavailable("no reading covers the measured window"), window
    if any(one.window_steps != num[one.segment] for one, _ in metered) or sum(num.values()) != len(window):
        return Unavailable("not every domain was read over the same steps"), window
    low, high = (
        sum(spent * getattr(one, end) / max(one.total_uj, 1) for one, spent in metered) for end in ("low_uj", "high_uj")
    )
    energy_j = sum(spent for _, spent in metered) / UJ_PER_J
    how = "from the beginning of the first to the end of the last step after the warm-up; interval as of the total"
    word = _word([one for one, _ in metered])
    return Quantity(energy_j, "J", how, len(window), (low / UJ_PER_J, high / UJ_PER_J), word), window


def _scaled(figure: Quantity, factor: float, unit: str, how: str) -> Quantity:
    low, high = figure.bounds or (figure.value, figure.value)
    return Quantity(figure.value * factor, unit, how, figure.n, (low * factor, high * factor), figure.provenance)


def _each(window: Figure, num: int, what: str) -> Figure:
    """Return the energy of the window for each of ``num`` things in it."""
    if isinstance(window, Unavailable):
        return window
    if not num:
        return Unavailable(f"the window has no {what}")
    return _scaled(window, 1 / float(num), "J", f"energy of the window over its {int(num):,} {what}")


def _power(window: Figure, wall_s: float) -> Figure:
    if isinstance(window, Unavailable):
        return window
    return _scaled(window, 1 / wall_s, "W", "energy of the window over the time of its steps")


def _flops_per_j(run: Run, per_token: Figure) -> Figure:
    """Return how many of the FLOPs that the model needs are done with one joule."""
    flops = run.fact("model", "flops_per_token")
    if isinstance(per_token, Unavailable):
        return per_token
    if not flops:
        return Unavailable("the model gives no FLOPs per token")
    low_j, high_j = per_token.bounds or (per_token.value, per_token.value)
    if low_j <= 0:
        return Unavailable("the interval of the energy per token begins at 0")
    how = "FLOPs per token, full attention, over the energy per token"
    bounds = float(flops) / high_j, float(flops) / low_j
    return Quantity(float(flops) / per_token.value, "FLOP/J", how, per_token.n, bounds, per_token.provenance)


def _consequences(accounts: Sequence[Account], factors: Mapping[int, Factors | Unavailable]) -> dict[str, Figure]:
    """Return carbon, water and price of everything that was metered, each segment with its own factors."""
    used = [factors.get(one.segment, Unavailable("its segment is not in the manifest")) for one in accounts]
    known = [one for one in used if isinstance(one, Factors)]
    reasons = [one if isinstance(one, Unavailable) else one.gco2e_per_kwh for one in used]
    unknown = dict.fromkeys(one.reason for one in reasons if isinstance(one, Unavailable))
    grams = [one.gco2e_per_kwh for one in known if not isinstance(one.gco2e_per_kwh, Unavailable)]
    water = [one.water_l_per_kwh for one in known if one.water_l_per_kwh is not None]
    price = [one.price_per_kwh for one in known if one.price_per_kwh is not None]
    currencies = dict.fromkeys(one.currency for one in known if one.price_per_kwh is not None)
    figures: dict[str, Figure] = {
        "carbon_gco2e": Unavailable("; ".join(unknown)),
        "water_l": Unavailable("no factor given: carbon.water_l_per_kwh=…"),
        "price": Unavailable("no price given: carbon.price_per_kwh=…"),
    }
    if len(grams) == len(accounts):
        how = "; ".join(dict.fromkeys(one.how for one in known))
        figures["carbon_gco2e"] = _weighed(accounts, grams, "gCO2e", f"energy × {how}")
    if len(water) == len(accounts):
        figures["water_l"] = _weighed(accounts, water, "l", "energy × litres per kWh × PUE")
    if len(price) == len(accounts) and len(currencies) > 1:
        figures["price"] = Unavailable(f"the segments' prices are in several currencies: {', '.join(currencies)}")
    elif len(price) == len(accounts):
        figures["price"] = _weighed(accounts, price, next(iter(currencies)), "energy × price × PUE")
    return figures


def _weighed(accounts: Sequence[Account], per_kwh: Sequence[float], unit: str, how: str) -> Quantity:
    """Return the sum of every account's energy times its factor, with the interval of the energy."""
    value, low, high = (
        sum(getattr(one, end) * each for one, each in zip(accounts, per_kwh, strict=True)) / UJ_PER_J / J_PER_KWH
        for end in ("total_uj", "low_uj", "high_uj")
    )
    return Quantity(value, unit, how, 1, (low, high), _word(accounts))


def _by_bucket(
    parts: Sequence[Account], factors: Mapping[int, Factors | Unavailable]
) -> dict[str, float] | Unavailable:
    """Return the grams of every bucket of a domain, each segment with its own intensity."""
    grams: dict[str, float] = {}
    for part in parts:
        factor = factors.get(part.segment, Unavailable("its segment is not in the manifest"))
        gco2e_per_kwh = factor.gco2e_per_kwh if isinstance(factor, Factors) else factor
        if isinstance(gco2e_per_kwh, Unavailable):
            return gco2e_per_kwh
        for bucket in part.buckets:
            spent = bucket.energy_uj / UJ_PER_J / J_PER_KWH * gco2e_per_kwh
            grams[bucket.name] = grams.get(bucket.name, 0.0) + spent
    return grams


def cumulative_j(run: Run, ledger: Ledger) -> Floats:
    """Return the (num_kept_steps,) joules from the beginning of the run to the end of each kept step, or NaN."""
    kept, before_uj = run.steps.kept, 0
    joules = np.full(len(kept), np.nan)
    accounts = counted(ledger)
    for segment in sorted({one.segment for one in accounts}):
        mine = [one for one in accounts if one.segment == segment]
        rows = kept.segment == segment
        if all(len(one.by_step.steps) for one in mine):
            spent_uj = sum((_spent_uj(one.by_step, kept.step[rows]) for one in mine), np.zeros(int(rows.sum())))
            joules[rows] = (before_uj + spent_uj) / UJ_PER_J
        before_uj += sum(one.total_uj for one in mine)
    return joules


def _spent_uj(curve: StepCurve, steps: Ints) -> Floats:
    """Return the energy up to the end of each step; NaN for steps outside the curve."""
    return np.interp(steps, curve.steps, curve.energy_uj, left=np.nan, right=np.nan)
