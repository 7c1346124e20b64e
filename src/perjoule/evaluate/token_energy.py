"""Joules per token of work that can be repeated: each kind of it fills a phase that is long enough for the meters.

A token takes milliseconds, and the best counters are read every few tens of them. So the same work is done again and
again, whatever it is, within one phase of a measurement (measure.session), and the ledger says what the phase used,
how that was found, and how well it is known. Nothing is divided that no meter saw: an energy that is not known is
:class:`~perjoule.measure.contract.Unavailable`, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perjoule.core.files import temporary_folder
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Unavailable
from perjoule.measure.ledger import PROVENANCE, Account, Bucket, Ledger, Tier, outermost_accounts
from perjoule.measure.session import Measurement

Work = Callable[[], int]
"""Does something that ends when it returns (a device included), and returns the tokens that it took."""


@dataclass(frozen=True)
class TokenEnergy:
    """What a token cost.

    Args:
        energy_j: per token.
        low_j: lower end of the 95 % interval; hard bounds where the method is ``shared``.
        high_j: upper end.
        method: how the weakest part of it was found: measured, calibrated, regressed, shared or modelled.
        num_tokens: of all repetitions.
        seconds: of all repetitions, wall time.
        domains: of which it is the sum, with sensor, method and joules of each (JSON).
    """

    energy_j: float
    low_j: float
    high_j: float
    method: str
    num_tokens: int
    seconds: float
    domains: list[dict[str, Any]]


def token_energies(
    works: Mapping[str, Callable[[], Work]], energy: EnergyConfig, least_s: float
) -> dict[str, TokenEnergy | Unavailable]:
    """Repeat every work for a while, and return what a token of it cost.

    Args:
        works: by name, each a phase of the measurement, with what prepares it right before its phase.
        energy: meters, and who reads them.
        least_s: wall seconds of each.
    """
    spent: dict[str, tuple[int, float]] = {}
    with temporary_folder() as folder:
        with Measurement(folder / "run", energy=energy) as measured:
            for name, prepare in works.items():
                work = prepare()
                with measured.phase(name):
                    spent[name] = _repeat(work, least_s)
        ledger = measured.ledger()
    return {name: _per_token(ledger, name, *spent[name]) for name in works}


def _repeat(work: Work, least_s: float) -> tuple[int, float]:
    """Do the work until the time is over; return tokens and seconds."""
    begun, num_tokens = time.monotonic(), 0
    while True:
        num_tokens += work()
        if (seconds := time.monotonic() - begun) >= least_s:
            return num_tokens, seconds


def _per_token(ledger: Ledger, phase: str, num_tokens: int, seconds: float) -> TokenEnergy | Unavailable:
    """Add up what a phase used in every domain that is not part of another one."""
    accounts = outermost_accounts(ledger.merged())
    if not accounts:
        total = ledger.total()
        assert isinstance(total, Unavailable)
        return total
    found = [(one, bucket) for one in accounts for bucket in one.buckets if bucket.name == phase]
    energy_uj = sum(bucket.energy_uj for _, bucket in found)
    if energy_uj <= 0:
        domains = ", ".join(one.label for one in accounts)
        return Unavailable(f"{domains} showed no energy in {seconds:.2g} s", "repeat for longer: latency.energy_s")
    weakest = max((bucket.tier for _, bucket in found), key=list(Tier).index)
    per_token = 1e6 * num_tokens
    return TokenEnergy(
        energy_j=energy_uj / per_token,
        low_j=sum(bucket.low_uj for _, bucket in found) / per_token,
        high_j=sum(bucket.high_uj for _, bucket in found) / per_token,
        method=PROVENANCE[weakest],
        num_tokens=num_tokens,
        seconds=seconds,
        domains=[_as_json(account, bucket) for account, bucket in found],
    )


def _as_json(account: Account, bucket: Bucket) -> dict[str, Any]:
    return {
        "domain": account.label,
        "sensor": account.sensor.method,
        "method": PROVENANCE[bucket.tier],
        "energy_j": bucket.energy_uj / 1e6,
        "low_j": bucket.low_uj / 1e6,
        "high_j": bucket.high_uj / 1e6,
        "why": bucket.why,
    }
