"""What ran, as blocks of names and values: the run, its model, its data, and every segment.

Models, data sets and backends may put any nested facts into the manifest. Facts are shown flat under their own names;
mappings of the same shape (the splits of a data set) become the rows of a grid, and lists of sentences a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perjoule.core.units import byte_size, duration, si
from perjoule.report.summary import startup_parts_s
from perjoule.runs.tables import Run

MISSING = "–"
"""What stands in a table where there is no value; the reason is given beside or below."""
_GRID_COLUMNS = ("documents", "tokens", "num_samples", "ignored_fraction", "unavailable")
"""What is shown of each split; all there is if a data set has none of these."""
_HASH = re.compile(r"[0-9a-f]{17,}")
_PATH = re.compile(r"(~|\.{0,2})/|[A-Za-z]:\\")
_HASH_SHOWN, _SHORT = 12, 24


@dataclass(frozen=True)
class Entry:
    """One name and its value.

    Args:
        name: of the fact.
        text: the value for people.
        code: whether it is a path or a hash, which one copies rather than reads.
        full: the whole value, if ``text`` shows only its beginning.
    """

    name: str
    text: str
    code: bool = False
    full: str = ""


@dataclass(frozen=True)
class Grid:
    """Several things with the same facts. ``headings`` has as many cells as each row, the name of the thing first."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Listing:
    """Sentences under one name."""

    name: str
    items: tuple[str, ...]


@dataclass
class Block:
    """What is known about one thing, in the order in which it is shown."""

    title: str
    entries: list[Entry] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)

    def add(self, content: Mapping[str, Any], above: str = "") -> Block:
        """Take in nested facts; ``above`` is the name of what they are nested in."""
        for key, value in content.items():
            name = f"{above} {_name(key)}".strip()
            if isinstance(value, Mapping) and _is_grid(value):
                self.grids.append(_grid(name, value))
            elif isinstance(value, Mapping) and value:
                self.add(value, "" if key == "facts" else name)
            elif _is_prose(value):
                self.listings.append(Listing(name, tuple(map(str, value))))
            elif (entry := _entry(name, key, value)) not in self.entries:  # a data set repeats its kind in its facts
                self.entries.append(entry)
        return self


def blocks(run: Run) -> list[Block]:
    """Return what the manifest says of the run as a whole, of its model and data, and of every segment."""
    whole = Block("Run", [Entry("folder", str(run.path), code=True)])
    whole.entries.append(Entry("created", moment(run.manifest.get("created"))))
    if run.manifest.get("recipe"):
        whole.add({"recipe": run.manifest["recipe"]})
    whole.entries.append(Entry("code", *_commit(run.manifest.get("code"))))
    sections = [(name, run.manifest.get(name)) for name in ("model", "data")]
    described = [
        Block(name.capitalize()).add({key: content[key] for key in sorted(content, key=lambda key: key != "kind")})
        for name, content in sections
        if isinstance(content, Mapping)
    ]
    return [whole, *described, *(_segment(segment.number, segment.facts) for segment in run.segments)]


def _commit(facts: Any) -> tuple[str, bool, str]:
    """Return the text of a commit, whether one copies it, and the whole of it."""
    if not isinstance(facts, Mapping) or not facts.get("commit"):
        reason = facts.get("unavailable") if isinstance(facts, Mapping) else None
        return f"commit not known: {reason or 'not recorded'}", False, ""
    whole = str(facts["commit"])
    return f"commit {whole[:_HASH_SHOWN]}{', with changes' if facts.get('changed') else ''}", True, whole


def moment(written: Any) -> str:
    """Format an ISO 8601 time of the manifest: ``2026-11-24 06:15:30``."""
    return str(written)[:19].replace("T", " ") if written else "unknown"


def device(facts: Mapping[str, Any]) -> str:
    """Return what a segment ran on: ``2 × cuda``."""
    world_size = int(facts.get("world_size") or 1)
    name = str(facts.get("device") or "unknown device")
    return f"{world_size} × {name}" if world_size > 1 else name


def _segment(number: int, facts: Mapping[str, Any]) -> Block:
    warmup = int(facts.get("warmup_steps") or 0)
    steps = f"{facts.get('first_step', '?')} to {facts.get('last_step', '?')}"
    block = Block(f"Segment {number}")
    block.entries += [
        Entry("steps", f"{steps}, the first {warmup} of them warm-up" if warmup else steps),
        Entry("time", f"{moment(facts.get('started'))} – {moment(facts.get('ended'))}"),
        Entry("device", device(facts)),
    ]
    if isinstance(facts.get("host"), Mapping):
        block.entries.append(Entry("host", _one_line(facts["host"])))
    if isinstance(facts.get("peak"), Mapping):
        block.entries.append(Entry("peak", _peak(facts["peak"])))
    parts_s = startup_parts_s(facts)
    if parts_s:
        parts = " · ".join(f"{part} {duration(spent)}" for part, spent in parts_s.items())
        block.entries.append(Entry("start-up", f"{duration(sum(parts_s.values()))}: {parts}"))
    backend = facts.get("backend")
    if isinstance(backend, Mapping):
        chosen = backend.get("chosen")
        if isinstance(chosen, Mapping):
            block.entries.append(Entry("backend", _one_line(chosen)))
        reasons = backend.get("why")
        if isinstance(reasons, Sequence) and not isinstance(reasons, str):
            block.listings.append(Listing("why this backend", tuple(map(str, reasons))))
    return block


def _peak(facts: Mapping[str, Any]) -> str:
    if not facts.get("flops"):
        return str(facts.get("unavailable") or "not known")
    speed = si(float(facts["flops"]), "FLOP/s")
    return f"{speed}, {facts.get('precision', 'precision not recorded')}, {facts.get('how', 'source not recorded')}"


def _name(key: Any) -> str:
    return str(key).removeprefix("num_").replace("_", " ").replace("flops", "FLOPs")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_grid(content: Mapping[str, Any]) -> bool:
    """Tell whether these are several things with the same facts."""
    rows = list(content.values())
    if not rows or not all(isinstance(row, Mapping) and all(map(_is_scalar, row.values())) for row in rows):
        return False
    return bool(set.intersection(*(set(row) for row in rows)))


def _is_prose(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, str) and len(one) > _SHORT and " " in one for one in value)


def _grid(name: str, content: Mapping[str, Mapping[str, Any]]) -> Grid:
    known = list(dict.fromkeys(key for row in content.values() for key in row))
    columns = [key for key in _GRID_COLUMNS if key in known] or known
    headings = (name, *("ignored" if key == "ignored_fraction" else _name(key) for key in columns))
    rows = [(str(one), *(_cell(key, row) for key in columns)) for one, row in content.items()]
    return Grid(headings, tuple(rows))


def _cell(key: str, row: Mapping[str, Any]) -> str:
    return _short(_show(key, row[key])) if key in row else MISSING


def _entry(name: str, key: str, value: Any) -> Entry:
    text = _show(key, value)
    if isinstance(value, str) and (_PATH.match(text) or key == "path"):
        return Entry(name, text, code=True)
    short = _short(text)
    return Entry(name, text) if short == text else Entry(name, short, code=True, full=text)


def _short(text: str) -> str:
    """Return ``text`` with every long hash cut down to its beginning."""
    return _HASH.sub(lambda found: f"{found[0][:_HASH_SHOWN]}…", text)


def _show(key: str, value: Any) -> str:
    """Return a value that is not nested in its unit, which the end of its name gives."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(str(key), value)
    if isinstance(value, Mapping):
        return _one_line(value) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_show(key, one) for one in value) or "none"
    return MISSING if value is None else str(value)


def _number(key: str, value: float) -> str:
    if key == "bytes" or key.endswith("_bytes"):
        return byte_size(value)
    if key.endswith("_s"):
        return duration(value)
    if key.endswith("_fraction"):
        return f"{value * 100:.3g} %"
    if "flops" in key:
        return si(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) < 1e15 else f"{value:.6g}"


def _one_line(content: Mapping[str, Any]) -> str:
    return " · ".join(_pieces(content))


def _pieces(content: Mapping[str, Any]) -> Iterator[str]:
    for key, value in content.items():
        yield f"{_name(key).removesuffix(' bytes')} {_short(_show(key, value))}"
