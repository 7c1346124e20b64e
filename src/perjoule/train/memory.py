"""Memory: whether a model fits before it is built, and what to do when it was not enough."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from perjoule.core.errors import ConfigError, OutOfMemory
from perjoule.core.limits import available_bytes
from perjoule.core.units import byte_size
from perjoule.measure.contract import Meter, Unavailable

_BYTES_PER_WEIGHT = 16
"""Weight, gradient and the two moments of Adam, in float32."""
_HINTS = "can't allocate memory", "DefaultCPUAllocator", "not enough memory", "out of memory", "Cannot allocate memory"
_MOST_BUILDING_S = 4.0
"""CPU time; a model of thousands of layers is described in less."""
_TOO_LARGE = "overflow", "invalid shape", "too large", "exceeds", "Trying to create tensor with negative dimension"


def check_fit(config: Any, shape: Any, device: torch.device) -> None:
    """Refuse a model that cannot be trained in the memory that is there, before any of it is taken.

    Args:
        config: of the model; ``build(shape)`` makes it.
        shape: sizes of the data.
        device: where it will be trained.

    Raises:
        ConfigError: if weights, gradients and the optimizer's state do not fit.
    """
    there, what = _free_bytes(device)
    weights, begun_s, counted = 0, time.process_time(), dict[int, nn.Parameter]()

    def count(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        """Count a parameter as it is made, a tied one once, and stop as soon as there are too many."""
        nonlocal weights
        if weight is not None and id(weight) not in counted:
            counted[id(weight)] = weight
            weights += weight.numel()
        if weights * _BYTES_PER_WEIGHT > there:
            raise _TooLargeError
        if time.process_time() - begun_s > _MOST_BUILDING_S:
            raise ConfigError(f"model: it has {len(counted):,} parameters and more; use fewer layers")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            config.build(shape)
    except _TooLargeError as error:
        raise ConfigError(
            f"model: {weights:,} weights or more need {byte_size(weights * _BYTES_PER_WEIGHT)} with gradients and "
            f"optimizer, and {what} has {byte_size(there)} left; make the model or the vocabulary smaller"
        ) from error
    except ConfigError:
        raise
    except (RuntimeError, OverflowError, MemoryError, ValueError) as error:
        if any(hint in str(error) for hint in (*_TOO_LARGE, *_HINTS)) or isinstance(error, OverflowError | MemoryError):
            raise ConfigError(f"model: its sizes are too large for any machine: {_first_line(error)}") from error
    except Exception:  # an adapter of a zoo may want to compute something as it is built: the real attempt will tell
        return
    finally:
        hook.remove()


def check_batch(size: int, accumulation: int, shape: Mapping[str, int]) -> None:
    """Refuse a micro-batch whose ids and labels alone do not fit, before it is drawn.

    Args:
        size: samples of a step.
        accumulation: micro-batches of a step.
        shape: sizes of the data.

    Raises:
        ConfigError: naming how many samples fit.
    """
    there, sample_bytes = available_bytes(), 2 * 8 * shape.get("seq_len", 1)
    if size // accumulation * sample_bytes > there:
        raise ConfigError(
            f"batch.size: {size:,} samples in {accumulation:,} micro-batches need "
            f"{byte_size(size // accumulation * sample_bytes)} for ids and labels alone, and this machine (or its "
            f"container) has {byte_size(there)} left; accepted: less than {there // sample_bytes * accumulation:,}"
        )


class _TooLargeError(Exception):
    """More weights than fit."""


def _free_bytes(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]), str(device)
    return available_bytes(), "this machine (or its container)"


def explained(error: BaseException, batch_size: int, accumulation: int) -> BaseException:
    """Return one line about memory that was not enough, in place of the error that says so; any other error itself.

    Args:
        error: what was raised.
        batch_size: samples of a step.
        accumulation: micro-batches of a step.
    """
    is_it = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(hint in str(error) for hint in _HINTS)
    )
    if not is_it:
        return error
    traceback.clear_frames(error.__traceback__)  # what they hold is needed for the end of the run
    return OutOfMemory(
        f"out of memory: {_first_line(error) or 'the system gave no more'}; use a smaller batch.size "
        f"(now {batch_size}), a larger batch.accumulation (now {accumulation}), or a smaller model"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""


class MemoryReading:
    """Reads the memory meter at most ten times a second; a reading costs as much as the rest of a step's record."""

    def __init__(self, meter: Meter | Unavailable) -> None:
        self._meter = meter
        self._next_s = 0.0
        self._text = "null"

    def json(self) -> str:
        """Return the last reading, or null."""
        now = time.monotonic()
        if now >= self._next_s and not isinstance(self._meter, Unavailable):
            self._next_s = now + 0.1
            reading = self._meter.read()
            self._text = "null" if isinstance(reading, Unavailable) else str(reading)
        return self._text
