"""The real configuration of a training run, through the same loader."""

from pathlib import Path

import pytest

from perjoule.config import yaml
from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError
from perjoule.measure.recorder import FencePolicy
from perjoule.models.transformer import TransformerConfig
from perjoule.train.config import (
    BackendConfig,
    BatchConfig,
    CheckpointConfig,
    RecordConfig,
    StopConfig,
    TrainConfig,
)
from perjoule.train.identity import MAY_CHANGE

RECIPE = """\
model: {kind: transformer, preset: 4xs, num_layers: 1}
data: {kind: stdlib, seq_len: 32}
batch: {size: 4, accumulation: 2}
stop:
  steps: 1e2
  seconds: 60
record: {fence: step}
checkpoint: {asynchronous: false}
backend: plain
"""


def test_recipe_equals_the_same_config_made_in_python(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    expected = TrainConfig(
        model=TransformerConfig(preset="4xs", num_layers=1),
        data={"kind": "stdlib", "seq_len": 32},
        batch=BatchConfig(size=4, accumulation=2),
        stop=StopConfig(steps=100, seconds=60),
        record=RecordConfig(fence=FencePolicy.STEP),
        checkpoint=CheckpointConfig(asynchronous=False),
        backend=BackendConfig(preset="plain"),
    )
    resolved = load(TrainConfig, recipe)
    assert resolved.config == expected
    assert resolved.config.backend.threads == "torch"
    assert resolved.sources["model.dim"] == "preset 4xs"
    assert resolved.sources["model.num_layers"] == f"{recipe}:1"
    assert resolved.sources["backend.preset"] == f"{recipe}:9"


def test_dumped_config_is_a_recipe_of_the_same_config(tmp_path: Path) -> None:
    config = load(TrainConfig, None, ["optimizer.lr=3e-5", "backend=plain", "model.preset=xs", "name='010'"]).config
    recipe = tmp_path / "dump.yaml"
    recipe.write_text(yaml.dump(config.model_dump(mode="json")), encoding="utf-8")
    resolved = load(TrainConfig, recipe)
    assert resolved.config == config
    assert all(source.startswith(f"{recipe}:") for source in resolved.sources.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.size=7", "batch.accumulation=2"], "batch: size 7 must be a multiple of accumulation 2"),
        (
            ["stop={steps: 9, patience: 2}"],
            "the recipe: stop.patience counts evaluations: give evaluate.every_steps or evaluate.every_epochs",
        ),
        (["stop={patience: 2}"], "stop: give at least one of steps, epochs, tokens, seconds, energy, carbon"),
        (
            ["stop={energy: 50 W}"],
            "stop.energy: must be an energy such as 500 J, 50kJ, 1.5 MJ or 2 kWh, or a number of joules, not '50 W'",
        ),
        (["stop={energy: -1}"], "stop.energy: must be greater than 0, not -1"),
        (
            ["stop={carbon: 10 kJ}"],
            "stop.carbon: must be a mass such as 500 mg, 10g or 0.2 kg, or a number of grams, not '10 kJ'",
        ),
        (
            ["stop={carbon: 10g}"],
            "the recipe: stop.carbon needs carbon.location, such as DEU, or carbon.intensity_g_per_kwh",
        ),
        (
            ["stop={energy: 50kJ}", "energy.sampler=off"],
            "the recipe: stop.energy needs meters: energy.sampler must not be off, nor energy.meters empty",
        ),
        (
            ["stop={carbon: 10g}", "carbon.location=DEU", "energy.meters=[]"],
            "the recipe: stop.carbon needs meters: energy.sampler must not be off, nor energy.meters empty",
        ),
        (
            ["energy.calibrate=true", "record.enabled=false"],
            "the recipe: energy.calibrate needs energy.meters, an energy.sampler that is not off, and "
            "record.enabled=true",
        ),
        (
            ["schedule.kind=cosine", "stop={seconds: 5}"],
            "the recipe: schedule.kind 'cosine' must know its last step: give stop.steps, stop.epochs, stop.tokens or "
            "schedule.horizon_steps",
        ),
        (["device=gpu"], "device: must be cpu, cuda, or cuda and a number, such as cuda:1"),
        (
            ["name=../x"],
            "name: must be letters, digits, '.', '_' and '-', a letter or digit first, at most 200, not '../x'",
        ),
        (["optimizer.lr=0"], "optimizer.lr: must be greater than 0, not 0"),
        (["optimizer.kind=adam"], "optimizer.kind: 'adam' is not accepted: did you mean 'adamw'? (accepted: adamw)"),
        *(
            (
                [f"backend.precision={asked}"],
                f"backend.precision: must be auto, float32, bf16-autocast or bf16, not {shown}: fp16 needs a gradient "
                "scaler, and there is none; bf16-autocast needs none",
            )
            for asked, shown in (("fp16", "'fp16'"), ("float16", "'float16'"), ("fp16-autocast", "'fp16-autocast'"))
        ),
        (["batch.workers=65"], "batch.workers: must be less than or equal to 64, not 65"),
        (["backend.threads=0"], "backend.threads: must be 'auto' or 'torch' or must be greater than 0, not 0"),
        (["evaluate.batches=-20"], "evaluate.batches: must be greater than 0, not -20"),
        (["checkpoint.asynchronous=on"], "checkpoint.asynchronous: must be true or false, not 'on'"),
        (["data=text"], "data.path: is required"),
    ],
)
def test_mistake_names_its_key_and_what_is_accepted(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, None, overrides)
    assert str(caught.value).removesuffix("  (command line)") == message


def test_budgets_are_quantities_and_are_dumped_in_base_units(tmp_path: Path) -> None:
    config = load(TrainConfig, None, ["stop={energy: 2 kWh, carbon: 0.2 kg}", "carbon.location=CAN-quebec"]).config
    assert (config.stop.energy, config.stop.carbon) == (7.2e6, 200.0)
    assert StopConfig(energy=7.2e6, carbon=200.0) == config.stop
    assert StopConfig.model_validate({"energy": "50kJ"}).energy == 50e3
    recipe = tmp_path / "dump.yaml"
    recipe.write_text(yaml.dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load(TrainConfig, recipe).config == config


def test_schedule_with_its_own_horizon_needs_no_last_step() -> None:
    config = load(TrainConfig, None, ["schedule={kind: linear, horizon_steps: 9}", "stop={seconds: 5}"]).config
    assert config.schedule.horizon_steps == 9


def test_keys_that_may_change_on_resume_exist() -> None:
    keys = [*load(TrainConfig).sources, *load(TrainConfig, None, ["data={kind: text, path: corpus}"]).sources]
    assert [prefix for prefix in MAY_CHANGE if not any(key.startswith(prefix) for key in keys)] == []
