"""CodeCarbon as a referee: it meters the whole run once more, in a process of its own, and the difference is explained.

It runs with ``tracking_mode="machine"``, its default and what people compare with: as a process of its own it could
otherwise see only itself. It never runs per phase; that costs 1.2 to 2 times the step and drops what lies between.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perjoule.core.errors import MissingExtra, RunFolderError
from perjoule.core.units import J_PER_KWH, duration, si
from perjoule.measure.bridges.codecarbon_schema import UJ_PER_J, metered_s, part_of, word
from perjoule.measure.carbon.places import canonical, country_name
from perjoule.measure.carbon.table import read_table
from perjoule.measure.ledger import Account, Ledger, Total
from perjoule.runs.cross_check import CrossCheck, add_cross_check

CHILD = "perjoule.measure.bridges.codecarbon_child"
_PROVINCE = "CAN"
_GONE_S = 5.0


class Referee:
    """CodeCarbon's tracker in a process that ends with the trainer. Nothing here raises into training.

    Use :meth:`start` and, at the end of the segment, :meth:`stop`.
    """

    def __init__(self, process: subprocess.Popen[str] | None, why: str = "") -> None:
        self._process, self._why = process, why
        self._answer: list[str] = []
        self._reader: threading.Thread | None = None
        if process is not None:
            self._reader = threading.Thread(target=self._read, name="perjoule-codecarbon", daemon=True)
            self._reader.start()

    @classmethod
    def start(cls, location: str | None, measure_power_secs: float = 5.0) -> Referee:
        """Start the tracker, without waiting for it.

        Args:
            location: as in :class:`perjoule.measure.carbon.CarbonConfig`; None: no carbon is compared.
            measure_power_secs: seconds between two looks of CodeCarbon, 1 to 15.

        Raises:
            MissingExtra: if CodeCarbon is not installed.
        """
        if find_spec("codecarbon") is None:
            raise MissingExtra("energy.cross_check=codecarbon needs CodeCarbon: pip install 'perjoule[codecarbon]'")
        arguments = tracker_arguments(location, measure_power_secs)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C in the terminal is the trainer's business
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
        except OSError as error:
            return cls(None, f"CodeCarbon's process could not be started: {error.strerror}")
        return cls(process)

    @property
    def pid(self) -> int | None:
        """Return the process id, None if there is no process."""
        return None if self._process is None else self._process.pid

    def stop(self, run: Path, segment: int, node: str, timeout_s: float = 15.0) -> CrossCheck:
        """End the tracker, put its row into the run folder, and return it.

        Args:
            run: the run folder.
            segment: number of the segment that was metered.
            node: name of the machine.
            timeout_s: how long CodeCarbon may take for its last measurement.
        """
        check = self._ask(segment, node, timeout_s)
        try:
            add_cross_check(run, check)
        except RunFolderError as error:
            return CrossCheck(segment, node, {}, (), str(error))
        return check

    def _ask(self, segment: int, node: str, timeout_s: float) -> CrossCheck:
        if self._process is None or self._reader is None:
            return CrossCheck(segment, node, {}, (), self._why)
        process, why = self._process, ""
        assert process.stdin is not None
        try:
            process.stdin.write("stop\n")
            process.stdin.close()
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            why = f"CodeCarbon did not end within {timeout_s:g} s"
        except OSError:
            why = "CodeCarbon's process had ended before the run"
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that a driver holds is given up
            process.wait(_GONE_S)
        self._reader.join(_GONE_S)
        try:
            answer = json.loads(self._answer[-1])
            return CrossCheck(segment, node, answer["row"], tuple(answer["hardware"]))
        except (IndexError, ValueError, KeyError, TypeError):
            return CrossCheck(segment, node, {}, (), why or "CodeCarbon gave no row")

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as lines:
            self._answer.extend(lines)


def tracker_arguments(location: str | None, measure_power_secs: float) -> dict[str, Any]:
    """Return the keyword arguments of CodeCarbon's ``OfflineEmissionsTracker``.

    Without a place the intensity is forced to 0, for CodeCarbon would take the mean of the world; the zero is not
    compared.
    """
    known = canonical(location or "")
    country, _, region = known.partition("-")
    named = country_name(country.upper()) and (not region or known.lower() in map(str.lower, read_table()))
    place: dict[str, Any] = {"country_iso_code": country.upper()} if named else {}
    if place and region:
        place["region"] = region.replace("-", " ").lower()
    if not place:
        place = {"force_carbon_intensity_g_co2e_kwh": 0.0}
    return {
        **place,
        "tracking_mode": "machine",
        "measure_power_secs": measure_power_secs,
        "save_to_file": False,
        "save_to_api": False,
        "allow_multiple_runs": True,
        "log_level": "critical",
    }


def explain(ledger: Ledger, check: CrossCheck, carbon: Mapping[str, Any] | None = None) -> list[str]:
    """Return in words how CodeCarbon's figures and ours differ for a segment, and why.

    Args:
        ledger: of the run.
        check: what CodeCarbon said about one segment.
        carbon: the manifest's facts about the segment's carbon.
    """
    if check.unavailable:
        return [f"CodeCarbon: no cross-check: {check.unavailable}"]
    total = ledger.total()
    domains = total.domains if isinstance(total, Total) else ()
    accounts = [
        one
        for one in ledger.accounts
        if (one.segment, one.node) == (check.segment, check.node) and one.label in domains
    ]
    row = check.row
    lines = [_whole(row, accounts, check.hardware)]
    lines += [line for name in ("cpu", "gpu", "ram") if (line := _part(name, row, accounts))]
    lines += _spans(row, accounts) if accounts else []
    lines += _carbon(row, carbon or {})
    lines.append(
        "CodeCarbon cannot see: phases, the process's own share of the machine (mode machine), memory that is in use "
        "(RAM is a constant per module it guesses), a GPU without an energy counter (it reads 0)"
    )
    return lines


def _j(row: Mapping[str, Any], name: str) -> float:
    return float(row.get(name) or 0.0) * J_PER_KWH


def _ratio(theirs: float, ours: float) -> str:
    return f", {theirs / ours:.3g} times" if ours > 0 else ""


def _whole(row: Mapping[str, Any], accounts: Sequence[Account], hardware: Sequence[str]) -> str:
    theirs, ours = _j(row, "energy_consumed"), sum(one.total_uj for one in accounts) / UJ_PER_J
    how = f" ({'; '.join(hardware)})" if hardware else ""
    if not accounts:
        return f"CodeCarbon: {si(theirs, 'J')}{how}; perjoule metered nothing"
    low, high = (sum(getattr(one, end) for one in accounts) / UJ_PER_J for end in ("low_uj", "high_uj"))
    words = "+".join(dict.fromkeys(map(word, accounts)))
    inside = "inside" if low <= theirs <= high else "outside"
    return (
        f"CodeCarbon: {si(theirs, 'J')}{how}; perjoule: {si(ours, 'J')} {words}, {si(low, 'J')} to {si(high, 'J')}"
        f"{_ratio(theirs, ours)}; CodeCarbon's figure lies {inside} the interval"
    )


def _part(name: str, row: Mapping[str, Any], accounts: Sequence[Account]) -> str:
    """Return the line of one of CodeCarbon's three parts, "" if nobody has a figure."""
    mine = [one for one in accounts if part_of(one) == name]
    theirs, ours = _j(row, f"{name}_energy"), sum(one.total_uj for one in mine) / UJ_PER_J
    power = float(row.get(f"{name}_power") or 0.0)
    said = f"{name}: CodeCarbon {si(theirs, 'J')} ({power:.3g} W)"
    if not mine:
        return f"{said}; perjoule did not meter it, so the totals differ by all of it" if theirs > 0 else ""
    figures = ", ".join(f"{one.sensor.domain}, {word(one)}: {one.sensor.method}" for one in mine)
    why = {
        "cpu": "without RAPL CodeCarbon takes the power of the whole socket from a table or 4 W per thread, times load",
        "gpu": "both read the driver's energy counter where there is one; CodeCarbon takes all GPUs that it sees",
        "ram": "CodeCarbon takes a constant per memory module, whose number it guesses",
    }[name]
    return f"{said}; perjoule {si(ours, 'J')}{_ratio(theirs, ours)} ({figures}); {why}"


def _spans(row: Mapping[str, Any], accounts: Sequence[Account]) -> list[str]:
    """Say if the two metered spans of different length."""
    theirs_s, ours_s = float(row.get("duration") or 0.0), metered_s(accounts)
    if abs(theirs_s - ours_s) <= 0.02 * max(theirs_s, ours_s):
        return []
    spans = f"CodeCarbon {duration(theirs_s)}, perjoule {duration(ours_s)}"
    return [f"duration: {spans}: CodeCarbon begins when it has found its hardware, some seconds into a run"]


def _carbon(row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Say if the two multiply with different factors."""
    lines = []
    if (pue := float(facts.get("pue") or 1.0)) != 1:
        lines.append(f"PUE: CodeCarbon was run with 1; perjoule's carbon is {pue:g} times the intensity")
    theirs_kwh, theirs_g = float(row.get("energy_consumed") or 0.0), float(row.get("emissions") or 0.0) * 1e3
    if theirs_kwh <= 0 or facts.get("g_per_kwh") is None or not row.get("country_iso_code"):
        return [*lines, "intensity: not compared, as there is none or no place was given"]
    theirs, ours = theirs_g / theirs_kwh, float(facts["g_per_kwh"])
    if abs(theirs - ours) <= 0.02 * max(theirs, ours):
        return lines
    why = "other source or year"
    if row.get("country_iso_code") == _PROVINCE and row.get("region"):
        why = "for a Canadian province CodeCarbon counts the shares of coal, oil and gas only, everything else as 0"
    return [
        *lines,
        f"intensity: CodeCarbon {theirs:.4g} g/kWh, perjoule {ours:.4g} g/kWh ({facts.get('source')}): {why}",
    ]
