"""Measure any training loop: the same records, ledger and report as those of our own.

::

    with perjoule.measure("runs/mine") as measured:
        for batch in loader:
            with measured.step(samples=len(batch)) as step:
                with measured.phase("forward"):
                    loss = model(batch)
                with measured.phase("backward"):
                    loss.backward()
                step.loss = loss.item()
    print(measured.ledger().total())

Steps and phases may be left out: time in no phase is reported as ``outside``. A phase within another one is
nested in it, here ``attention`` in ``forward`` as ``forward/attention``. What a kill leaves behind is a readable run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perjoule.config import yaml
from perjoule.config.resolve import flatten
from perjoule.core.errors import ConfigError, PerjouleError, RunFolderError
from perjoule.core.phases import OTHER, STEP
from perjoule.measure.blocks import Phase, Step
from perjoule.measure.carbon import CarbonConfig
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Site, Unavailable
from perjoule.measure.machine import device_name, host_facts, process_age_s
from perjoule.measure.machine_load import MachineLoad
from perjoule.measure.recorder import FencePolicy, Recorder, Timed
from perjoule.measure.sampler import Sampler, SamplerState
from perjoule.runs import folder
from perjoule.runs.folder import RunFolder
from perjoule.runs.journal import BEGIN, END, JournalWriter
from perjoule.runs.machine_load import KEY
from perjoule.runs.tables import last_step

if TYPE_CHECKING:
    from perjoule.measure.ledger import Ledger

EDGE = "measure"
"""A phase without length at both ends of the measurement, so that time outside of all phases has ends too."""
RESERVED = (STEP, OTHER, EDGE, "outside", "monitor", "unknown", "calibrate")
READY_WITHIN_S = 10.0
WATCH_EVERY_S = 1.0


class Measurement:
    """Records what happens in its ``with`` block as one run. For one process and one thread of it.

    Args:
        run: the folder to make; a new one in ``runs`` if left out.
        append: add a segment to the folder if it exists already; its steps go on counting.
        meters: what to read, as in ``["rapl", {"kind": "cpu_time", "active_w_per_core": 9}]``.
        energy: meters, sampler and rate in one; instead of ``meters``.
        carbon: where the electricity is from.
        devices: accelerators to meter, as in ``CUDA_VISIBLE_DEVICES``; if left out, those on which torch holds memory
            when the block is entered, or else the visible ones.
        fence: waits until the device is idle. If given it is called at every edge, which changes what it measures.
        warmup_steps: first steps that rates and the energy per step leave out.
        facts: JSON for the manifest, such as ``{"model": {"kind": "my net", "parameters": 25_000_000}}``.

    Raises:
        ConfigError: if both ``meters`` and ``energy`` are given, or a meter is not known.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        append: bool = False,
        meters: Sequence[Any] | None = None,
        energy: EnergyConfig | None = None,
        carbon: CarbonConfig | None = None,
        devices: Sequence[str] | None = None,
        fence: Callable[[], None] | None = None,
        warmup_steps: int = 0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        if meters is not None and energy is not None:
            raise ConfigError("give perjoule.measure either meters or energy, which has meters of its own")
        if meters is not None:
            energy = EnergyConfig(meters=tuple(meters))
        self.run = Path(run) if run is not None else Path("runs") / folder.new_run_id("measure")
        self.metered: SamplerState | Unavailable = Unavailable("the measurement has not begun")
        """What is metered and what is not, once the block is entered."""
        self._append = append
        self._energy, self._carbon = energy or EnergyConfig(), carbon or CarbonConfig()
        self._devices, self._fence, self._warmup_steps, self._facts = devices, fence, warmup_steps, facts or {}
        self._open: list[tuple[str, Timed]] = []
        self._known: dict[tuple[str, str], tuple[str, Timed]] = {}
        self._num_steps = 0
        self._watched_s = 0.0
        self._stop_poller: Callable[[], None] = lambda: None
        self._load: MachineLoad | None = None

    def __enter__(self) -> Measurement:
        """Make the run folder, start the sampler and wait for its first readings.

        Raises:
            RunFolderError: if the folder exists or cannot be written; with ``append``, if it is no measurement's.
            ConfigError: if the place of ``carbon`` is not known.
            MissingExtra: if CodeCarbon's tables are asked for and it is not installed.
        """
        config = {"energy": self._energy.model_dump(mode="json"), "carbon": self._carbon.model_dump(mode="json")}
        intensity = self._carbon.resolve()
        node, policy = platform.node(), FencePolicy.EDGE if self._fence else FencePolicy.NONE
        devices = tuple(self._devices if self._devices is not None else devices_in_use())
        begun_s = process_age_s()
        self._folder = self._open_folder(config)
        with contextlib.ExitStack() as undo:
            undo.callback(self._folder.close)
            segment = self._folder.begin_segment(
                {
                    "host": host_facts(),
                    "device": ", ".join(devices) or "cpu",
                    "world_size": 1,
                    "first_step": self._num_steps + 1,
                    "warmup_steps": self._warmup_steps,
                    "startup_s": {"before the measurement": round(begun_s, 4)},
                    "fence": policy.value,
                    "energy": {"config": config["energy"], "nodes": [node]},
                    "carbon": self._carbon.facts(intensity),
                    **self._segment_facts(),
                }
            )
            header = {"rank": 0, "segment": segment, "node": node}
            self._journal = JournalWriter(self._folder.event_path(0), (STEP, EDGE), header)
            undo.pop_all()
        self._recorder = Recorder(self._journal, self._fence or (lambda: None), policy)
        self._step_edges = self._recorder.phase(STEP)
        path, site = folder.sample_path(self.run, segment, node), self._site(devices)
        self._sampler, self._begun_s = (
            Sampler.start(path, self._energy, site, node, {"segment": segment}),
            time.monotonic(),
        )
        try:
            if poller := self._carbon.follow(self.run, intensity):
                self._stop_poller = poller.stop
            self.metered = self._sampler.ready(READY_WITHIN_S)
        except BaseException as error:  # Ctrl-C while it waits: a block that is not entered has no end
            self.__exit__(type(error), error, None)
            raise
        self._begun_s, self._load = time.monotonic(), self._watch_load()
        self._mark_edge()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take a last reading and complete the run folder; an error of the block is written down and goes on."""
        with contextlib.suppress(*([PerjouleError] if error is not None else [])):  # the block's own error matters more
            self.end(*describe_end(error))

    def end(self, status: str, reason: str) -> None:
        """Take a last reading and complete the run folder, where there is no ``with`` block to do it.

        Args:
            status: ``finished``, ``stopped`` or ``failed``.
            reason: why, in words.

        Raises:
            RunFolderError: if the folder cannot be written; the meters are no longer read all the same.
        """
        seconds, load = time.monotonic() - self._begun_s, {} if self._load is None else {KEY: self._load.facts()}
        with contextlib.ExitStack() as last:  # each is done even if one before it fails
            last.callback(self._folder.close)
            last.callback(self._folder.end, status, reason, last_step=self._num_steps, seconds=seconds, **load)
            last.callback(self._recorder.close)
            last.callback(self._sampler.stop)
            last.callback(self._stop_poller)
            self._mark_edge()

    def again(self, run: Path) -> Measurement:
        """Return a measurement of the same kind that has not begun, into another folder."""
        return Measurement(
            run,
            append=self._append,
            energy=self._energy,
            carbon=self._carbon,
            devices=self._devices,
            fence=self._fence,
            warmup_steps=self._warmup_steps,
            facts=self._facts,
        )

    def step(
        self, *, samples: int = 0, tokens: int = 0, useful: int | None = None, loss: Any = None, lr: float | None = None
    ) -> Step:
        """Return the next step, to be entered with ``with``. What is not known before may be set on it inside.

        Args:
            samples: that the step trains on.
            tokens: label positions.
            useful: those that are trained on; all of them if left out.
            loss: of the step; anything that ``float`` takes.
            lr: learning rate.
        """
        return Step(self._begin_step, self._end_step, samples, tokens, useful, loss, lr)

    def phase(self, name: str) -> Phase:
        """Return a phase, to be entered with ``with``, as often as wanted.

        Args:
            name: any but those of :data:`RESERVED`. Within another phase it is nested in that one.
        """
        return Phase(self._enter_phase, self._leave_phase, name)

    def ledger(self) -> Ledger:
        """Return where every joule of the measurement went, also while it is still going on.

        Raises:
            RunFolderError: if the run cannot be read.
        """
        from perjoule.measure.book import build_ledger
        from perjoule.runs.tables import load_run

        return build_ledger(load_run(self.run))

    def _begin_step(self) -> None:
        if self._open:
            raise ConfigError(f"a step cannot begin within {_describe(self._open[-1][0])}: end that first")
        self._recorder.step = self._num_steps + 1
        self._open.append((STEP, self._step_edges))
        self._step_edges.__enter__()

    def _end_step(self, step: Step, completed: bool) -> None:
        self._step_edges.__exit__(None, None, None)
        self._open.pop()
        if completed:
            self._num_steps += 1
            self._folder.append(step.as_line(self._folder.segment, self._num_steps))
        if (now_s := time.monotonic()) >= self._watched_s:
            self._watched_s = now_s + WATCH_EVERY_S
            if note := self._sampler.watch():
                self._folder.append_event("note", step=self._num_steps, text=f"energy: {note}")

    def _enter_phase(self, name: str) -> None:
        within = self._open[-1][0] if self._open else STEP
        found = self._known.get((within, name))
        if found is None:
            found = self._known[within, name] = self._make_phase(within, name)
        self._open.append(found)
        found[1].__enter__()

    def _leave_phase(self) -> None:
        _, edges = self._open.pop()
        edges.__exit__(None, None, None)

    def _make_phase(self, within: str, name: str) -> tuple[str, Timed]:
        """Return the full name of a phase and what writes its edges; the first time it gets a place in the journal."""
        parts = name.split("/")
        if not all(part.strip() for part in parts) or name in RESERVED:
            raise ConfigError(
                f"{name!r} cannot be the name of a phase; take any words but {', '.join(RESERVED)}, with / between the "
                "names of nested ones"
            )
        full = name if within == STEP or name.startswith(f"{within}/") else f"{within}/{name}"
        outer = full.rpartition("/")[0]
        if outer and outer != within:
            raise ConfigError(f"phase {full!r} lies in {outer!r}, which is not open here")
        if full not in self._journal.phases:
            self._journal.add_phase(full)
        return full, self._recorder.phase(full)

    def _open_folder(self, config: dict[str, Any]) -> RunFolder:
        """Make the run folder, or open the one that a segment is added to."""
        if not self.run.exists():
            resolved = {key: {"value": value, "source": "perjoule.measure"} for key, value in flatten(config).items()}
            facts = {"recipe": "measure", **self._facts, "measured": True}
            return RunFolder.create(self.run, yaml.dump(config), resolved, facts)
        if not self._append:
            raise RunFolderError(
                f"the run folder {self.run} exists already: {self._how_to_add}, or choose another name"
            ) from FileExistsError(str(self.run))
        manifest = folder.read_manifest(self.run)
        if not manifest.get("measured") and manifest.get("recipe") != "measure":
            raise RunFolderError(f"{self.run} is not a measurement's run folder: choose another name")
        opened = RunFolder.reopen(self.run)
        self._num_steps = last_step(self.run)
        return opened

    _how_to_add = "add to it with append=True"

    def _segment_facts(self) -> dict[str, Any]:
        """Return more facts of the segment."""
        return {}

    def _site(self, devices: tuple[str, ...]) -> Site:
        """Return whose energy is metered."""
        return Site((os.getpid(),), devices)

    def _watch_load(self) -> MachineLoad:
        """Begin to watch what other programs use."""
        return MachineLoad()

    def _cpu_ns(self) -> int:
        """Return the CPU time of what is measured."""
        return time.process_time_ns()

    def _mark_edge(self) -> None:
        t_ns, cpu_ns = time.monotonic_ns(), self._cpu_ns()
        for kind in (BEGIN, END):
            self._journal.put(t_ns, cpu_ns, 0, self._journal.code(EDGE, kind))


def measure(*arguments: Any, **options: Any) -> Measurement:
    """Measure what happens in a ``with`` block; the arguments are those of :class:`Measurement`."""
    return Measurement(*arguments, **options)


def devices_in_use() -> tuple[str, ...]:
    """Return the accelerators of this process: where torch, if it was imported, holds memory, or the visible ones."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        used = [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(index)]
        uuids = [getattr(torch.cuda.get_device_properties(index), "uuid", None) for index in used]
        return tuple(
            device_name(index, visible, None if uuid is None else str(uuid))
            for index, uuid in zip(used, uuids, strict=True)
        )
    return tuple(word.strip() for word in (visible or "").split(",") if word.strip())


def describe_end(error: BaseException | None) -> tuple[str, str]:
    """Return the status and the reason of a run whose block was left by ``error``, or by nothing."""
    if error is None:
        return folder.FINISHED, "the measured block ended"
    if isinstance(error, GeneratorExit):
        return folder.STOPPED, "the generator around the measured block was closed"
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return folder.FINISHED, "the program ended itself within the measured block"
        return folder.FAILED, f"the program ended itself within the measured block: exit code {error.code}"
    status = folder.STOPPED if isinstance(error, KeyboardInterrupt) else folder.FAILED
    return status, f"{type(error).__name__}: {error}"


def _describe(name: str) -> str:
    return "another step" if name == STEP else f"the phase {name!r}"
