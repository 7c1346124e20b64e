"""A trained model, built again from its run folder: configuration, weights of a checkpoint, tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from perjoule.config import Component, Config, yaml
from perjoule.core.errors import CheckpointError, ConfigError, DataError, RunFolderError
from perjoule.data import SHELF as DATA
from perjoule.data.contract import DataSet
from perjoule.data.tokenizer import TextTokenizer
from perjoule.models import SHELF as MODELS
from perjoule.models.contract import Decoder
from perjoule.models.weights import load_weights
from perjoule.runs import checkpoints, folder

_log = logging.getLogger(__name__)
Which = Literal["last", "best"] | int
"""The newest whole checkpoint, the one with the lowest held-out loss, or that of a step."""


@dataclass(frozen=True)
class Trained:
    """A model as a run left it, ready to be used: on its device, in evaluation mode, float32.

    Args:
        run: the run folder.
        step: of the checkpoint.
        model: the module.
        config: the model's section of the run's configuration.
        shape: the sizes of the data that the model was built from.
        device: where the model is.
        data_overrides: what is said anew of the run's ``data`` section, such as a path.
    """

    run: Path
    step: int
    model: nn.Module
    config: Config
    shape: Mapping[str, int]
    device: torch.device
    data_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoder(self) -> Decoder:
        """Return the model as one that writes token after token.

        Raises:
            ConfigError: if it cannot.
        """
        if not isinstance(self.model, Decoder):
            raise ConfigError(f"{self.run}: a model of kind {getattr(self.config, 'kind', '?')} writes no tokens")
        return self.model

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return what made the tokens.

        Raises:
            ConfigError: if the model was not trained on text.
        """
        path = self.run / folder.TOKENIZER
        if not path.is_file():
            raise ConfigError(
                f"{self.run} has no {folder.TOKENIZER}: its model was not trained on text, or by an older perjoule"
            )
        return TextTokenizer.load(path)

    def data(self) -> DataSet:
        """Prepare the data that the model was trained on, or find it prepared.

        Raises:
            DataError: if it cannot be prepared here, or has changed since.
        """
        config, facts = _read_config(self.run), folder.read_manifest(self.run)["data"]["facts"]
        section = config["data"] | self.data_overrides
        if "path" not in self.data_overrides and not Path(section.get("path", "/")).is_absolute():
            section["path"] = facts.get("path", section["path"])  # early runs kept it as it was typed
        try:
            data: DataSet = Component(DATA).instantiate(section).build(config["seed"])
        except DataError as error:
            raise DataError(f"{error}; if the data of {self.run} was moved, say where it is: data.path=…") from error
        before = facts.get("identity")
        now = data.facts.get("identity")
        if before != now:
            raise DataError(
                f"the data is not what {self.run} was trained on: its identity was {before}, now it is {now}; "
                "a loss on it would be that of other tokens"
            )
        return data


def load_trained(
    run: Path, which: Which = "last", device: str = "cpu", data_overrides: Mapping[str, Any] | None = None
) -> Trained:
    """Build the model of a run and load a checkpoint.

    Args:
        run: the run folder; the run may still be going on.
        which: the checkpoint.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        data_overrides: values of the ``data`` section that are no longer those of training.

    Raises:
        RunFolderError: if it is no run folder, or a measurement without a model.
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if the device does not exist here.
    """
    manifest, section = folder.read_manifest(run), _read_config(run)["model"]
    checkpoint = _find(run, which)
    config: Any = Component(MODELS).instantiate(section)
    sizes = {key: value for key, value in manifest["data"].items() if key not in {"kind", "facts"}}
    model: nn.Module = config.build(sizes)
    load_weights(checkpoint / checkpoints.MODEL, model)
    try:
        place = torch.device(device)
        model = model.float().to(place).eval()
    except (RuntimeError, AssertionError) as error:  # torch says either
        raise ConfigError(f"device {device} does not exist here; accepted: cpu, or cuda where torch has it") from error
    return Trained(run, int(checkpoint.name), model, config, sizes, place, data_overrides or {})


def _read_config(run: Path) -> dict[str, Any]:
    """Read the configuration a run was trained with."""
    path = run / folder.CONFIG
    try:
        loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), str(path)).data
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not loaded:
        raise RunFolderError(f"{path} is empty; accepted: the configuration that the run was trained with")
    if not isinstance(loaded.get("model"), dict):
        raise RunFolderError(
            f"{run} holds a measurement of a program that trained its own model: there is no model of ours to load; "
            f"accepted: a run of perjoule train (what this one cost: perjoule report {run})"
        )
    return loaded


def _find(run: Path, which: Which) -> Path:
    """Return the folder of a whole checkpoint."""
    saved = run / folder.CHECKPOINTS
    steps = checkpoints.listed_steps(saved)
    if not steps:
        raise CheckpointError(f"{run} has no checkpoint yet")
    if which == "last":
        newest = checkpoints.newest_whole(saved, _log.warning)
        assert newest is not None
        return newest
    step = checkpoints.best_step(saved) if which == "best" else which
    if step is None:
        raise CheckpointError(f"{run} has no best checkpoint: its held-out loss was never measured")
    if step not in steps:
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has: {', '.join(map(str, steps))}")
    checkpoint = saved / f"{step:08d}"
    checkpoints.verify(checkpoint)
    return checkpoint
