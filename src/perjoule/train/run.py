"""One training run from its configuration: build the parts, open the folder, hand them to the loop, end in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from perjoule.config import with_absolute_paths, yaml
from perjoule.config.resolve import Resolved
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.seeding import derive
from perjoule.data.contract import Batch, DataSet, Samples
from perjoule.data.prefetch import Prefetcher
from perjoule.data.progress import telling
from perjoule.data.split import EmptySplit
from perjoule.data.tokenizer import TextTokenizer
from perjoule.measure.machine import MachineProfile, process_age_s
from perjoule.measure.recorder import Recorder
from perjoule.models.weights import load_weights
from perjoule.runs import checkpoints, folder
from perjoule.runs.files import write_atomically
from perjoule.runs.folder import RunFolder
from perjoule.train import backend as backends
from perjoule.train import debug
from perjoule.train.backend import Backend
from perjoule.train.calibrate import calibrate
from perjoule.train.checkpoint import restore
from perjoule.train.config import TrainConfig
from perjoule.train.console import Console
from perjoule.train.costs import Costs
from perjoule.train.distributed import Ranks
from perjoule.train.gradients import BlockGradients
from perjoule.train.identity import changed_sections, check_same_data, check_same_run, data_facts, model_facts
from perjoule.train.job import Job
from perjoule.train.loop import Loop
from perjoule.train.memory import check_batch, check_fit, explained
from perjoule.train.optimizer import Clipper
from perjoule.train.resuming import TrainResult, backend_config, finished_before, say_done, was_finished
from perjoule.train.session import Session
from perjoule.train.stopping import FirstStepWatch, Goal, Interrupted, Progress, SignalFlag, ending_of
from perjoule.train.stream import Stream

T = TypeVar("T")


def train(
    config: TrainConfig | Resolved[TrainConfig],
    *,
    recipe: str = "run",
    resume: Path | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train one model and record it.

    Args:
        config: what to train; with the sources of its values if it came from a file.
        recipe: a name for the run folder.
        resume: an existing run folder to continue.
        console: where lines go.

    Raises:
        PerjouleError: with one clear line; the run folder says how it ended.
    """
    resolved = config if isinstance(config, Resolved) else Resolved(config, {})
    # A run folder can be read from anywhere; where it is made is told by the path that the reader sees.
    anchored = with_absolute_paths(resolved.config).model_copy(update={"runs": resolved.config.runs})
    resolved = Resolved(anchored, resolved.sources)
    if resume is not None:
        check_same_run(resume, resolved)
        if (done := finished_before(resume, resolved)) is not None:
            say_done(console or Console(silent=os.environ.get("RANK", "0") != "0"), done)
            return done
    ranks = Ranks.join(resolved.config.device)
    console = console or Console(silent=not ranks.leads)
    try:
        with SignalFlag() as signals:
            signals.nothing_to_lose = lambda: True
            return _Assembly(resolved, recipe, resume, ranks, console, signals).run_to_the_end()
    finally:
        console.close()
        ranks.leave()


class _Assembly:
    """Builds the parts of a run in the order in which they need one another, and times the start-up."""

    def __init__(
        self,
        resolved: Resolved[TrainConfig],
        recipe: str,
        resume: Path | None,
        ranks: Ranks,
        console: Console,
        signals: SignalFlag,
    ) -> None:
        self.resolved, self.config, self.recipe = resolved, resolved.config, recipe
        self.resume, self.ranks, self.console, self.signals = resume, ranks, console, signals
        self.path: Path | None = None
        self.progress = Progress()
        self.startup_s = {"import": process_age_s()}
        self.profile = MachineProfile()

    def run_to_the_end(self) -> TrainResult:
        """Build, train, end; also if somebody asks to stop, or a budget is used up, while there is nothing to lose."""
        try:
            return self.execute()
        except Interrupted as interrupted:
            status, reason = ending_of(interrupted)
            self.console.line(f"{status}: {reason}, at step {self.progress.step}")
            return TrainResult(self.path, status, reason, self.progress.step, signal=interrupted.signal)
        except (MemoryError, RuntimeError) as error:
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> BaseException:
        """Return one line in place of an error that says that memory was not enough."""
        return explained(error, self.config.batch.size, self.config.batch.accumulation)

    def execute(self) -> TrainResult:
        """Build, train, end."""
        config, ranks = self.config, self.ranks
        device = _device(config.device, ranks)
        settings = backend_config(config, self.resume)
        early = backends.prepare(settings, ranks, self.profile)
        data = self._timed("data", self._build_data)
        samples = data.split("train")
        stream = Stream(config.batch, config.debug, ranks, samples.num_samples)
        if config.debug.data_only:
            debug.walk_data(stream, samples, config, self.console)
            return TrainResult(None, folder.FINISHED, "walked over the data", 0)
        backend = self._timed("backend", lambda: backends.choose(settings, device, early, self.profile))
        module = self._timed("model", lambda: self._build_model(data, backend))
        self._timed("backend", lambda: backend.tune(module, stream.rows, self.profile))
        held_out = self._held_out(data)
        run = ranks.leader_does(lambda: self._open_folder(data, module))
        try:
            path = self.path = ranks.from_leader(run.path if run else None)
            if ranks.leads:
                self.console.log_to(path / folder.LOG)
            self.console.line(f"run {path}")
            return self._train(run, path, backend, module, stream, samples, held_out)
        except BaseException as error:
            if run is not None and run.manifest["status"] == folder.RUNNING:
                run.end(*ending_of(self._explained(error)))
            raise
        finally:
            if run is not None:
                run.close()

    def _timed(self, name: str, build: Callable[[], T]) -> T:
        """Run a part of the start-up and note its seconds."""
        begun = time.monotonic()
        result = build()
        self.startup_s[name] = self.startup_s.get(name, 0.0) + time.monotonic() - begun
        return result

    def _build_data(self) -> DataSet:
        """Let the leader prepare the data; the others take what it leaves in the cache."""

        def build() -> DataSet:
            with telling(self.console.line):
                data: DataSet = self.config.data.build(self.config.seed)  # type: ignore[attr-defined]
            return data

        return self.ranks.leader_does(build) or build()

    def _build_model(self, data: DataSet, backend: Backend) -> nn.Module:
        """Build the module from its own random stream, in the chosen type, with the given weights."""
        config = self.config
        check_batch(config.batch.size, config.batch.accumulation, data.shape)
        check_fit(config.model, data.shape, backend.device)
        torch.manual_seed(derive(config.seed, "model"))
        module: nn.Module = config.model.build(data.shape)  # type: ignore[attr-defined]
        if getattr(config.data, "mask_documents", False) and not getattr(module, "masks_documents", False):
            raise ConfigError(
                f"data.mask_documents: a model of kind {getattr(config.model, 'kind', '?')} does not keep documents "
                "apart; accepted: false, or a model that does, such as transformer, retnet, longnet, ebt"
            )
        torch.manual_seed(derive(config.seed, "training", self.ranks.rank))
        if config.initial_weights is not None:
            load_weights(config.initial_weights, module)
        if backend.settings["precision"] == "bf16":
            module = module.to(torch.bfloat16)
        return module.to(backend.device)

    def _held_out(self, data: DataSet) -> Samples | None:
        """Return the split to evaluate on; say why if there is none, unless evaluations were asked for."""
        section = self.config.evaluate
        try:
            return data.split(section.split)
        except DataError as error:
            asked_for = section.every_steps or section.every_epochs
            if self.config.stop.patience or (asked_for and not isinstance(error, EmptySplit)):
                raise
            self.console.line(f"held-out loss: not measured ({error})")
            return None

    def _open_folder(self, data: DataSet, module: nn.Module) -> RunFolder:
        """Create the run folder, or reopen it; only the leader has one."""
        config = self.config
        if self.resume is not None:
            run = RunFolder.reopen(self.resume)
            check_same_data(self.resume, run.manifest, data)
            return run
        path = config.runs / (config.name or folder.new_run_id(self.recipe))
        facts = {"recipe": self.recipe, "model": model_facts(config.model, module, data), "data": data_facts(data)}
        run = RunFolder.create(path, yaml.dump(config.model_dump(mode="json")), self.resolved.as_json(), facts)
        tokenizer: TextTokenizer | None = getattr(data, "tokenizer", None)
        if tokenizer is not None:  # so that a run writes text where its data is not
            write_atomically(path / folder.TOKENIZER, tokenizer.inner.to_str())
        return run

    def _train(
        self,
        run: RunFolder | None,
        path: Path,
        backend: Backend,
        module: nn.Module,
        stream: Stream,
        samples: Samples,
        held_out: Samples | None,
    ) -> TrainResult:
        """Restore if asked, loop, end."""
        config, ranks, rows = self.config, self.ranks, stream.rows
        first = samples.batch(0, rows)
        goal = Goal(config.stop, config.batch.size, stream.epoch_samples, config.batch.size * first.num_tokens // rows)
        optimizer = config.optimizer.build(module, bool(backend.settings["fused_optimizer"]))
        progress = self.progress = self._restore(module, optimizer)
        if self.resume is not None and (reason := goal.reached(progress)) and ranks.from_leader(was_finished(run)):
            done = TrainResult(path, folder.FINISHED, reason, progress.step)
            say_done(self.console, done)
            return done
        costs = Costs.of(config, progress, stream, held_out, module)
        session = Session(
            config, path, run, ranks, self.console, backend, module, optimizer, stream, held_out, progress, costs
        )
        session.last_saved = progress.step or -1
        if self.resume is not None and ranks.leads:
            value, step = progress.top[0] if progress.top else (None, None)
            checkpoints.remark_best(path / folder.CHECKPOINTS, step, value, progress.ranked_by)
        session.open()
        try:
            goal = replace(goal, budgets=session.meter().budgets(config.stop, ranks), costs=costs)
            called = self._timed("backend", lambda: self._called(session, first, goal))
            costs.eager_step_s = backend.eager_step_s
            if goal.budgets or config.stop.seconds is not None:
                session.time_evaluation(goal)
            self.startup_s["other"] = max(0.0, process_age_s() - sum(self.startup_s.values()))
            recorder = session.begin(self.profile, self.startup_s, goal.last_step)
            return self._loop(session, called, samples, goal, recorder)
        except BaseException as error:
            session.fail(self._explained(error))
            raise
        finally:
            session.close()

    def _loop(
        self, session: Session, called: nn.Module, samples: Samples, goal: Goal, recorder: Recorder
    ) -> TrainResult:
        """Train from where the progress is to the end."""
        config, progress, module, signals = self.config, session.progress, session.module, self.signals
        first, gradients = progress.step, BlockGradients(module) if config.debug.gradients else None
        signals.nothing_to_lose = lambda: self.ranks.world_size == 1 and progress.step == first
        session.asked_to_stop = lambda: signals.received is not None

        def read_on() -> Prefetcher:
            return Prefetcher(samples, session.stream.ranges(progress.samples), config.batch.workers)

        with (
            FirstStepWatch(goal, progress, signals),
            read_on() as batches,
            torch.autograd.set_detect_anomaly(config.debug.anomaly_detection),
        ):
            job = Job(
                config=config,
                model=self.ranks.wrap(called),
                optimizer=session.optimizer,
                clipper=Clipper(
                    list(module.parameters()), config.optimizer.clip_norm, gradients.measure if gradients else None
                ),
                batches=batches,
                recorder=recorder,
                backend=session.backend,
                ranks=self.ranks,
                goal=goal,
                calendar=session.costs.calendar,
                signals=signals,
                on_step=gradients.before(session.on_step(goal), session.folder) if gradients else session.on_step(goal),
                evaluate=session.evaluate,
                save=session.save,
                after_optimizer_step=getattr(module, "after_optimizer_step", None),
            )
            if config.debug.rehearsal:
                debug.rehearse(job, session, samples.batch(0, session.stream.rows))
            if config.energy.calibrate and session.metering and session.metering.can_calibrate(self.ranks):
                with read_on() as again:
                    calibrate(job, module, again, self.console)
            if session.bridge is not None:
                session.bridge.begin()
            if gradients is not None:
                gradients.forget()
            self.console.begin(goal.last_step)
            ending = Loop(job, progress).run()
            status = folder.STOPPED if ending.signal else folder.FINISHED
            session.end(recorder, status, ending.reason, goal)
        return TrainResult(session.path, status, ending.reason, progress.step, session.last_loss, ending.signal)

    def _called(self, session: Session, first: Batch, goal: Goal) -> nn.Module:
        """Look at the first batch's gradients if asked, and return what the loop calls: the module, or it compiled."""
        config, backend, module = self.config, session.backend, session.module
        if config.debug.unused_parameters:
            unused = debug.unused_parameters(module, first, backend)
            self.console.line(f"parameters without a gradient: {', '.join(unused) or 'none'}")
        time_step = debug.step_timer(module, first, backend, config.batch.accumulation)
        return backend.compiled(module, time_step, *goal.remaining(session.progress), self.ranks.from_leader)

    def _restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Continue at the newest whole checkpoint of the run, or begin at the beginning."""
        if self.resume is None:
            return Progress()
        saved = self.resume / folder.CHECKPOINTS

        def find() -> Path | None:
            checkpoints.clean(saved)
            return checkpoints.newest_whole(saved, self.console.line)

        newest = self.ranks.from_leader(self.ranks.leader_does(find))
        if newest is None:
            self.console.line("no checkpoint yet: training starts again at step 1")
            return Progress()
        progress, same_random_states = restore(newest, module, optimizer, self.ranks.rank)
        if self.config.schedule.follows_the_end and "stop" in changed_sections(self.resume, self.resolved):
            self.console.line(
                "stop has changed and schedule.horizon_steps is not set: the learning rate takes a new curve"
            )
        if not same_random_states:
            self.console.line("this run has more ranks than before: the new ones start their random states afresh")
        self.console.line(f"continues after step {progress.step}, from {newest}")
        return progress


def _device(name: str, ranks: Ranks) -> torch.device:
    """Return the device of this rank.

    Raises:
        ConfigError: if there is no such device.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = ranks.local_rank if name == "cuda" else int(name.removeprefix("cuda:"))
    if index >= count:
        accepted = f"cpu, cuda:0 to cuda:{count - 1}" if count else "cpu (torch sees no CUDA device)"
        raise ConfigError(f"device {name} does not exist here; accepted: {accepted}")
    return torch.device("cuda", index)
