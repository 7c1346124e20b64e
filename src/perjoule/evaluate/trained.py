"""A trained model, built again from its run folder: configuration, weights of a checkpoint, tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from perjoule.config import Component, Config, yaml
from perjoule.core.errors import CheckpointError, ConfigError, DataError
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
    """

    run: Path
    step: int
    model: nn.Module
    config: Config
    shape: Mapping[str, int]
    device: torch.device

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
        config = _read_config(self.run)
        data: DataSet = Component(DATA).instantiate(config["data"]).build(config["seed"])
        before = folder.read_manifest(self.run)["data"]["facts"].get("identity")
        now = data.facts.get("identity")
        if before != now:
            raise DataError(
                f"the data is not what {self.run} was trained on: its identity was {before}, now it is {now}; "
                "a loss on it would be that of other tokens"
            )
        return data


def load_trained(run: Path, which: Which = "last", device: str = "cpu") -> Trained:
    """Build the model of a run and load a checkpoint.

    Args:
        run: the run folder; the run may still be going on.
        which: the checkpoint.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        RunFolderError: if it is no run folder.
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
    return Trained(run, int(checkpoint.name), model, config, sizes, place)


def _read_config(run: Path) -> dict[str, Any]:
    """Read the configuration a run was trained with."""
    text = (run / folder.CONFIG).read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, str(run / folder.CONFIG)).data
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
