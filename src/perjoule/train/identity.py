"""What a run is: the facts of its model and data, and what may not change when it is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from perjoule.config import Config
from perjoule.config.resolve import Resolved
from perjoule.core.errors import ConfigError, DataError, RunFolderError
from perjoule.data.contract import DataSet
from perjoule.models.contract import FlopsPerToken, count_parameters
from perjoule.runs import folder
from perjoule.train.config import TrainConfig

MAY_CHANGE = (
    "stop.",
    "evaluate.",
    "checkpoint.",
    "record.",
    "energy.",
    "carbon.",
    "stats",
    "debug.",
    "backend.",
    "batch.accumulation",
    "batch.workers",
    "data.cache",
    "data.path",
    "name",
    "runs",
    "device",
)
"""Keys that do not change what is trained; every other difference makes it another run.

Data may lie elsewhere: whether it is the same is asked of itself (`check_same_data`).
"""


def check_same_run(run: Path, resolved: Resolved[TrainConfig]) -> None:
    """Refuse to continue a run with another model, data, batch or optimizer.

    Raises:
        ConfigError: listing what differs.
        RunFolderError: if the run is a measurement, which has no model.
    """
    if not any(key.startswith("model.") for key in folder.read_resolved(run)):
        raise RunFolderError(
            f"{run} holds a measurement of a program that trained its own model: there is nothing of ours to resume; "
            "accepted: a run of perjoule train (another measurement is added to it by append)"
        )
    differing = [
        f"{key} was {before!r}, now it is {now!r}"
        for key, (before, now) in _differences(run, resolved).items()
        if not key.startswith(MAY_CHANGE)
    ]
    if differing:
        raise ConfigError(f"{run} cannot be resumed with another configuration: {'; '.join(differing)}")


def changed_sections(run: Path, resolved: Resolved[TrainConfig]) -> set[str]:
    """Return the sections of the configuration in which something differs from how the run began."""
    return {key.partition(".")[0] for key in _differences(run, resolved)}


def _differences(run: Path, resolved: Resolved[TrainConfig]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ: what the run began with, and what is given now."""
    before = {key: entry["value"] for key, entry in folder.read_resolved(run).items()}
    now = {key: entry["value"] for key, entry in resolved.as_json().items()}
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def check_same_data(run: Path, manifest: dict[str, Any], data: DataSet) -> None:
    """Refuse to continue a run on data that has changed since.

    Raises:
        DataError: if the data's identity differs.
    """
    before, now = manifest["data"]["facts"].get("identity"), data.facts.get("identity")
    if before != now:
        raise DataError(
            f"the data is not what {run} was trained on: its identity was {before}, now it is {now}; start a new run"
        )


def model_facts(config: Config, module: nn.Module, data: DataSet) -> dict[str, Any]:
    """Return what the manifest says of the model."""
    facts: dict[str, Any] = {"kind": getattr(config, "kind", None), "parameters": count_parameters(module)}
    if hasattr(config, "num_body_parameters"):
        facts["parameters_non_embedding"] = config.num_body_parameters
    count_flops: Callable[[int], FlopsPerToken] | None = getattr(module, "flops_per_token", None)
    if count_flops is not None and "seq_len" in data.shape:
        flops = count_flops(data.shape["seq_len"])
        facts |= {"flops_per_token": flops.full, "flops_per_token_causal": flops.causal}
    return facts


def data_facts(data: DataSet) -> dict[str, Any]:
    """Return what the manifest says of the data."""
    return {**data.shape, "kind": data.facts.get("kind"), "facts": dict(data.facts)}
