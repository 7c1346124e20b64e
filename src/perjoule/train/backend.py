"""How the arithmetic is done: what is fastest and still accurate on this machine, probed, printed, recorded.

Three moments: :func:`prepare` before the first tensor exists (allocator, threads), :func:`choose` before the model is
built (precision, matrix path), :meth:`Backend.tune` on the built model (attention kernel) and
:meth:`Backend.compiled` (whether compiling pays within this run). ``auto`` values are decided here; given ones are
taken as they are. Nothing here depends on IPEX.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from perjoule.core.limits import num_cores
from perjoule.core.units import si
from perjoule.measure.device_clock import Event
from perjoule.measure.machine import MachineProfile
from perjoule.train import probe
from perjoule.train.config import BackendConfig
from perjoule.train.distributed import Ranks

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
COMPILE_GAIN = 0.35
"""Share of the eager step that compiling saves, at least: measured 0.35 to 0.5 on language models (docs/log.md)."""
_WORST = 5
"""How many times longer a compilation took on a busy machine, which a run with a limit must not risk."""
_KNOWN_AFTER_S = 1.5
COLD_COMPILE_S = 40.0
"""What a first compilation takes on two cores, measured 14 to 35 s (docs/log.md)."""


@dataclass
class Backend:
    """The settings in force and why. ``settings`` are the keys of ``BackendConfig`` with no ``auto`` left."""

    device: torch.device
    settings: dict[str, Any]
    why: list[str] = field(default_factory=list)
    eager_step_s: float | None = None
    """What a step takes that is not compiled, if it was timed."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return the type that matrix products run in."""
        return torch.float32 if self.settings["precision"] == "float32" else torch.bfloat16

    @property
    def peak_name(self) -> str:
        """Return the name of the matching entry of :func:`probe.matmul_rates`."""
        return "bf16" if self.compute_dtype == torch.bfloat16 else f"float32-{self.settings['matmul']}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a reusable context for forward passes."""
        if self.settings["precision"] == "bf16-autocast":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def to_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch without waiting for the copy."""
        if self.device.type == "cpu":
            return tensors
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def fence(self) -> None:
        """Wait until the device has done all that was asked of it. A CPU has always done so."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def timing_event(self) -> Callable[[], Event] | None:
        """Return what makes an event that keeps the device's time; None on a CPU, whose time is the host's."""
        return partial(torch.cuda.Event, enable_timing=True) if self.device.type == "cuda" else None

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says."""
        wait_policy = os.environ.get("OMP_WAIT_POLICY", "not set")
        return {"chosen": dict(self.settings), "why": list(self.why), "omp_wait_policy": wait_policy}

    def tune(self, model: nn.Module, rows: int, profile: MachineProfile) -> None:
        """Choose the model's attention kernel, where the model lets us.

        Args:
            model: may have ``attention_probe(rows)`` (kernels and the shape they see) and ``set_attention(name)``;
                a kernel that its own configuration names is left alone.
            rows: samples of one micro-batch.
            profile: keeps the probe.
        """
        own = getattr(getattr(model, "config", None), "attention", "auto")
        if own != "auto":
            self.settings["attention"] = own
            self.why.append(f"attention {own}: as model.attention says")
        elif hasattr(model, "set_attention"):
            self._tune_attention(model, rows, profile)
        elif self.settings["attention"] == "auto":
            self.settings["attention"] = "sdpa"

    def _tune_attention(self, model: Any, rows: int, profile: MachineProfile) -> None:
        """Time the kernels at the shape this run will use."""
        if self.settings["attention"] == "auto" and self.device.type != "cpu":
            self.settings["attention"] = "sdpa"
        if self.settings["attention"] == "auto":
            kernels, shape = model.attention_probe(rows)
            seconds = probe.attention_seconds(profile, kernels, shape, self.compute_dtype)
            best = min(seconds, key=lambda name: seconds[name])
            self.settings["attention"] = best
            times = ", ".join(f"{name} {si(value, 's')}" for name, value in seconds.items())
            self.why.append(f"attention {best}: forward and backward take {times} per layer")
        model.set_attention(self.settings["attention"])

    def compiled(
        self,
        model: nn.Module,
        time_step: Callable[[], float],
        steps_left: int | None,
        seconds_left: Callable[[], float | None],
        agree: Callable[[bool], bool] = bool,
    ) -> nn.Module:
        """Return the model to call: compiled if that was asked for, or if it pays within this run.

        Args:
            model: the module.
            time_step: runs one eager forward and backward pass and returns its seconds.
            steps_left: steps of this run, if known.
            seconds_left: returns how long its time limit and budgets last, if it has any; 0 while that is not known.
            agree: makes one decision of those of all ranks.
        """
        if self.settings["compile"] and not getattr(model, "compilable", True):
            self.why.append(f"no compile: {type(model).__name__} takes gradients within its forward pass")
            self.settings["compile"] = False
        if self.settings["compile"] == "auto":
            self.settings["compile"] = agree(self._compiling_pays(time_step, steps_left, seconds_left))
        return cast(nn.Module, torch.compile(model)) if self.settings["compile"] else model

    def _compiling_pays(
        self, time_step: Callable[[], float], steps_left: int | None, seconds_left: Callable[[], float | None]
    ) -> bool:
        """Compare what compiling saves in the steps that are left with what it costs."""
        if self.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            self.why.append("no compile: no C++ compiler on the path")
            return False
        if steps_left is not None and steps_left < 20:
            self.why.append(f"no compile: {steps_left} steps cannot repay it")
            return False
        eager_s = self.eager_step_s = time_step()
        for _ in range(2):  # but not where timing itself would use up a small budget
            lasts_s = seconds_left()
            if lasts_s is None or lasts_s * COMPILE_GAIN > COLD_COMPILE_S * _WORST:
                eager_s = self.eager_step_s = min(eager_s, time_step())
        begun_s = time.monotonic()
        while (lasts_s := seconds_left()) == 0 and time.monotonic() - begun_s < _KNOWN_AFTER_S:
            time_step()  # the power of the work tells how long a budget of energy lasts
        left_s = min(
            lasts_s if lasts_s is not None else float("inf"),
            steps_left * eager_s if steps_left is not None else float("inf"),
        )
        cost_s = COLD_COMPILE_S * (_WORST if lasts_s == left_s else 1)
        pays = COMPILE_GAIN * left_s > cost_s
        self.why.append(
            f"{'compile' if pays else 'no compile'}: an eager step takes {si(eager_s, 's')}, {si(left_s, 's')} are "
            f"left, and compiling costs {'up to' if lasts_s == left_s else 'about'} {cost_s:.0f} s to save "
            f"{COMPILE_GAIN:.0%} of that"
        )
        return pays

    def peak(self, profile: MachineProfile) -> dict[str, Any]:
        """Return the measured peak of this precision for MFU, or why there is none."""
        if self.device.type != "cpu":
            return {"unavailable": f"no peak was measured on {self.device}; perjoule doctor measures CPUs only so far"}
        stored = profile.get(probe.matmul_key())
        if stored is not None and self.peak_name not in stored:
            return {"unavailable": f"the peak of {self.peak_name} is not measured"}
        if stored is None:
            return {"unavailable": "no peak was measured on this machine; run `perjoule doctor` once"}
        how = f"best measured matrix product in {self.peak_name}, {torch.get_num_threads()} threads, this machine"
        return {"flops": stored[self.peak_name]["flops"], "precision": self.peak_name, "how": how}


@dataclass(frozen=True)
class Early:
    """What stands before the first tensor: the allocator and the number of threads, and why."""

    allocator: str
    threads: int
    why: tuple[str, ...]


def prepare(config: BackendConfig, ranks: Ranks, profile: MachineProfile) -> Early:
    """Set the allocator and the number of threads of this process.

    Args:
        config: given or ``auto`` values.
        ranks: those of this node share its cores.
        profile: keeps the probe.
    """
    why = []
    allocator = config.allocator
    if allocator == "auto":
        allocator = "keep" if sys.platform == "linux" else "system"
    if allocator == "keep":
        if _keep_freed_memory():
            probe.note_allocator("keep")
        else:
            allocator = "system"
    threads: Any = config.threads
    if threads == "auto":
        threads, seconds = probe.best_threads(profile, max(1, num_cores() // ranks.local_world_size))
        why.append(f"threads {threads}: the same work takes, by number of threads, {seconds}")
    if isinstance(threads, int):
        torch.set_num_threads(threads)
    return Early(allocator, torch.get_num_threads(), tuple(why))


def _keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to keep them; return whether it took it."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(
            libc.mallopt(option, value)
            for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20))
        )
    except (OSError, AttributeError):
        return False


def choose(config: BackendConfig, device: torch.device, early: Early, profile: MachineProfile) -> Backend:
    """Decide precision and matrix path, and apply the global ones.

    Args:
        config: given or ``auto`` values.
        device: where the model will be.
        early: what :func:`prepare` decided.
        profile: keeps the probes.
    """
    settings = config.model_dump(exclude={"preset"}) | {"allocator": early.allocator, "threads": early.threads}
    backend = Backend(device, settings, list(early.why))
    undecided = "auto" in (settings["precision"], settings["matmul"])
    if device.type == "cpu" and undecided:
        _choose_on_cpu(backend, probe.matmul_rates(profile))
    elif undecided:
        _choose_on_accelerator(backend)
    if settings["fused_optimizer"] == "auto":
        settings["fused_optimizer"] = True
    if settings["precision"] == "bf16":
        backend.why.append("bf16 weights round away updates below about 0.4 % of a weight; bf16-autocast keeps them")
    torch.set_float32_matmul_precision(settings["matmul"])
    return backend


def _choose_on_cpu(backend: Backend, rates: dict[str, probe.MatmulRate]) -> None:
    """Take the fastest float32 path that is exact to float32, and bf16 where the hardware is faster still."""
    settings = backend.settings
    highest, medium = rates["float32-highest"], rates["float32-medium"]
    if settings["matmul"] == "auto":
        better = medium.error <= probe.ACCURATE and medium.flops > highest.flops
        settings["matmul"] = "medium" if better else "highest"
        verdict = "as exact" if medium.error <= probe.ACCURATE else "not float32 on this CPU"
        backend.why.append(
            f"matmul {settings['matmul']}: highest {si(highest.flops, 'FLOP/s')} (error {highest.error:.0e}), "
            f"medium {si(medium.flops, 'FLOP/s')} (error {medium.error:.0e}, {verdict})"
        )
    if settings["precision"] == "auto":
        float32 = rates.get(f"float32-{settings['matmul']}", highest)  # high is not timed
        bf16 = rates.get("bf16")
        faster = bf16 is not None and bf16.flops > 1.3 * float32.flops
        settings["precision"] = "bf16-autocast" if faster else "float32"
        rate = f"{si(bf16.flops, 'FLOP/s')} (error {bf16.error:.0e})" if bf16 else "not in this CPU's hardware"
        backend.why.append(
            f"precision {settings['precision']}: bf16 {rate}, float32 {si(float32.flops, 'FLOP/s')}; "
            "weights stay float32"
        )


def _choose_on_accelerator(backend: Backend) -> None:
    """Take bf16 where the device says it has it."""
    settings = backend.settings
    if settings["matmul"] == "auto":
        settings["matmul"] = "highest"
    if settings["precision"] == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        settings["precision"] = "bf16-autocast" if native else "float32"
        backend.why.append(f"precision {settings['precision']}: the device {'has' if native else 'lacks'} bf16")
