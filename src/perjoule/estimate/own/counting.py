"""Counting what a training step of a recipe does, without doing it: FLOPs, bytes, calls, memory. Imports torch.

The model is built and run forward and backward on tensors without content (torch's fake tensors), under a counter that
sees every operation with its shapes and types. That takes a second, needs no memory for the weights, and counts what
autocast casts and what autograd really calls, so that no architecture has to bring a formula. A number that the forward
pass reads from a tensor is not there: a random integer is taken to be in the middle of its range, anything else to be
1. A model that cannot be run like this is run once with real tensors.

The counts of a recipe are kept in the cache folder, under what they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import weakref
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from perjoule.core.cache import cache_folder
from perjoule.core.errors import RunFolderError
from perjoule.data.contract import Batch, DataSet
from perjoule.estimate.own.work import Work
from perjoule.measure.machine import installed
from perjoule.runs.files import read_json, write_json

if TYPE_CHECKING:
    from perjoule.train.config import TrainConfig

_aten = torch.ops.aten
_CANNOT_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
_OPTIMIZER_COPIES = 2
"""AdamW keeps two moments of each weight."""
_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


@dataclass(frozen=True)
class Counted:
    """A recipe's step, and what its data set says of the run.

    Args:
        work: of one optimizer step.
        samples_per_epoch: size of the training split.
        tokens_per_step: label positions of one optimizer step.
        held_out_samples: size of the split that is evaluated on; 0 if there is none.
    """

    work: Work
    samples_per_epoch: int
    tokens_per_step: int
    held_out_samples: int


def count(config: TrainConfig, precision: str, cache: Path | None = None) -> Counted:
    """Count one optimizer step of a recipe.

    The data set is built, which prepares it if it was never used, as training would.

    Args:
        config: the recipe.
        precision: ``float32``, ``bf16-autocast`` or ``bf16``; what ``auto`` stands for is for the caller to know.
        cache: folder of kept counts; None: the cache folder.

    Raises:
        DataError: if the data set cannot be prepared, or has no batch of this size.
    """
    path = (cache or cache_folder()) / f"work-{_key(config, precision)}.json"
    with contextlib.suppress(RunFolderError, KeyError, TypeError):  # never counted, or damaged: counted again
        stored = read_json(path)
        return Counted(**{**stored, "work": Work(**stored["work"])})
    counted = _count(config, precision)
    with contextlib.suppress(OSError, RunFolderError):  # a cache that cannot be written costs a second each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(counted))
    return counted


def _key(config: TrainConfig, precision: str) -> str:
    """Return the name of what the counts depend on: the sections, the versions, the source of the models."""
    sections = config.model_dump(mode="json", include={"model", "data", "batch", "seed", "evaluate"})
    folder = Path(str(find_spec("perjoule.models").origin)).parent  # type: ignore[union-attr]
    newest = max(path.stat().st_mtime_ns for path in folder.rglob("*.py"))
    identity = [sections, precision, installed("perjoule"), installed("torch"), newest]
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _count(config: TrainConfig, precision: str) -> Counted:
    data: DataSet = config.data.build(config.seed)  # type: ignore[attr-defined]
    samples = data.split("train")
    num_micro = config.batch.accumulation
    batch = samples.batch(0, config.batch.size // num_micro)
    try:
        work = _run(config, data, batch, precision, FakeTensorMode(allow_non_fake_inputs=True))
    except _CANNOT_FAKE:
        work = _run(config, data, batch, precision, None)
    try:
        held_out = data.split(config.evaluate.split).num_samples
    except Exception:  # a data set without that split trains, and is not evaluated
        held_out = 0
    return Counted(work.times(num_micro), samples.num_samples, batch.num_tokens * num_micro, held_out)


def _run(config: TrainConfig, data: DataSet, batch: Batch, precision: str, fake: FakeTensorMode | None) -> Work:
    """Run one micro-batch forward and backward under the counter."""
    low = precision != "float32"
    with fake or contextlib.nullcontext():
        model: nn.Module = config.model.build(data.shape)  # type: ignore[attr-defined]
        if precision == "bf16":
            _halve(model)
        tensors = {name: fake.from_tensor(one) if fake else one for name, one in batch.tensors.items()}
        weights = list(model.parameters())
        counter = _Counter(weights)
        with counter:
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-autocast" else contextlib.nullcontext():
                loss = model(tensors).loss
            forward_flops, forward_bytes = counter.total_flops, counter.total_bytes
            activation_bytes = counter.live_bytes
            loss.backward()
    trained = sum(one.numel() for one in weights if one.requires_grad)
    weight_bytes = sum(one.numel() * one.element_size() for one in weights)
    state_bytes = sum(_OPTIMIZER_COPIES * one.numel() * one.element_size() for one in weights if one.requires_grad)
    return Work(
        float32_flops=counter.product_flops.get(torch.float32, 0),
        bf16_flops=counter.product_flops.get(torch.bfloat16, 0),
        attention_flops=counter.attention_flops,
        bf16_attention_flops=counter.bf16_attention_flops,
        product_bytes=counter.product_bytes,
        moved_bytes=counter.moved_bytes,
        bf16_bytes=counter.bf16_bytes,
        strided_bytes=counter.strided_bytes,
        num_calls=counter.num_calls,
        trained_parameters=trained,
        forward_share=(
            forward_flops / counter.total_flops if counter.total_flops else forward_bytes / counter.total_bytes
        ),
        weight_bytes=weight_bytes + state_bytes,
        activation_bytes=activation_bytes,
        peak_bytes=counter.peak_bytes,
        computes_in="bfloat16" if low else "float32",
    )


def _halve(model: nn.Module) -> None:
    """Do what ``model.to(torch.bfloat16)`` does, which fake weights do not survive; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.is_floating_point():
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(weight.detach().bfloat16(), weight.requires_grad)
                module._parameters[name] = made[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.bfloat16()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what every operation does. Views cost a call and nothing else."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.product_flops: dict[torch.dtype, int] = {}
        self.attention_flops = self.bf16_attention_flops = self.product_bytes = self.num_calls = 0
        self.moved_bytes = self.bf16_bytes = self.strided_bytes = 0
        self.live_bytes = self.peak_bytes = 0
        self._seen = weakref.WeakSet(one.untyped_storage() for one in weights)

    @property
    def total_flops(self) -> int:
        """Return the FLOPs of products and attention in every precision."""
        return sum(self.product_flops.values()) + self.attention_flops + self.bf16_attention_flops

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all operations."""
        return self.product_bytes + self.moved_bytes + self.bf16_bytes + self.strided_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and take note of it."""
        kwargs = kwargs or {}
        if func.namespace != "aten":  # questions that python asks of a tensor, such as its device
            return func(*args, **kwargs)
        if func is _aten.randint.low and not args[2]:
            return torch.tensor((args[0] + args[1] - 1) // 2)
        if func is _aten._local_scalar_dense.default and _is_fake(args[0]) and args[0].constant is None:
            return True if args[0].dtype == torch.bool else 1
        output = func(*args, **kwargs)
        self.num_calls += 1
        if not any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
            self._note(func, args, kwargs, output)
        return output

    def _note(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Take note of an operation that is no view."""
        ins = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        outs = [one for one in tree_leaves(output) if isinstance(one, torch.Tensor)]
        num_bytes = sum(_num_bytes(one) for one in (*ins, *outs))
        packet = func._overloadpacket
        flops = _flops(packet, args, kwargs, output)
        if packet in _PRODUCTS or (flops and "attention" not in str(packet)):
            dtype = torch.bfloat16 if outs[0].dtype in _HALF else torch.float32
            self.product_flops[dtype] = self.product_flops.get(dtype, 0) + flops
            self.product_bytes += num_bytes
        else:
            if outs and outs[0].dtype in _HALF:
                self.bf16_attention_flops += flops
            else:
                self.attention_flops += flops
            if not all(one.is_contiguous() for one in ins):
                self.strided_bytes += num_bytes
            elif any(one.dtype in _HALF for one in (*ins, *outs)):
                self.bf16_bytes += num_bytes
            else:
                self.moved_bytes += num_bytes
        for one in outs:
            self._hold(one.untyped_storage())

    def _hold(self, storage: torch.UntypedStorage) -> None:
        """Count a new block of memory until it is freed."""
        if storage in self._seen:
            return
        self._seen.add(storage)
        num_bytes = storage.nbytes()
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, num_bytes).atexit = False

    def _free(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


def _is_fake(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "constant")


def _num_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that reading a tensor touches: an expanded axis is read once."""
    num = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        num *= size if stride else 1
    return num


def _flops(packet: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Return the FLOPs of a product, a convolution or attention; 0 of everything else."""
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=output))
    name = str(packet)
    if "attention_for_cpu" in name:
        # Of causal attention half is computed; torch's registry, which lacks the CPU's kernels, counts all of it.
        backward = name.endswith("_backward")
        query, key = args[1:3] if backward else args[:2]
        rows, heads, length, dim = query.shape
        whole = 4 * rows * heads * length * key.shape[2] * dim
        return int(whole * (2.5 if backward else 1)) // (2 if _is_causal(args, kwargs, backward) else 1)
    return 0


def _is_causal(args: Any, kwargs: Any, backward: bool) -> bool:
    place = 7 if backward else 4
    return bool(args[place] if len(args) > place else kwargs.get("is_causal", False))
