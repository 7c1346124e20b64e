"""Every language model trains, is evaluated out of distribution, and is reported, from one command line."""

from pathlib import Path

import pytest
import torch
from tests.system.tiny import Tiny, run_of

import perjoule
from perjoule.cli import main
from perjoule.core.errors import ConfigError, TrainingDiverged
from perjoule.evaluate.trained import load_trained
from perjoule.measure.book import build_ledger
from perjoule.models.contract import Decoder
from perjoule.runs.tables import load_run

KINDS = ("transformer", "retnet", "longnet", "ebt")
SMALL = ("model.dim=32", "model.num_layers=2", "batch.size=4", "backend=plain", "backend.threads=1", "data=dyck")


@pytest.mark.parametrize("kind", KINDS)
def test_architecture_trains_on_brackets_and_is_evaluated_on_deeper_ones(kind: str, tmp_path: Path) -> None:
    settings = ("stop.steps=3", "evaluate.split=ood", "evaluate.batches=1", f"runs={tmp_path}", "energy.sampler=off")
    result = perjoule.train(perjoule.load(None, f"model={kind}", *SMALL, *settings))
    assert result.run is not None
    run = load_run(result.run)
    assert [one.split for one in run.evaluations] == ["ood"]
    assert result.held_out_loss is not None
    assert 0 < result.held_out_loss < 10
    assert run.fact("model", "kind") == kind
    assert run.fact("model", "flops_per_token") > 0
    assert build_ledger(run).accounts == ()


def test_text_has_no_split_out_of_distribution_and_says_so(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("stop.steps=2", "evaluate.split=ood", f"runs={tmp_path}", "energy.sampler=off", "data.seq_len=32")
    text = (*SMALL[:-1], "data.kind=text", f"data.path={corpus}", "data.tokenizer.vocab_size=300")
    assert perjoule.train(perjoule.load(None, *text, *settings)).held_out_loss is None
    assert "held-out loss: not measured" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_matched_preset_trains_on_text_and_its_checkpoint_decodes(kind: str, tiny: Tiny) -> None:
    """The width of the tiny recipe is a preset's here, so that all else of the preset is seen to hold."""
    settings = [f"model={kind}", "model.preset=match-1m-flops", "stop.steps=2"]
    arguments = [one for one in tiny.arguments(*settings) if not one.startswith(("model.dim", "model.num_layers"))]
    trained = load_trained(run_of(perjoule.train(perjoule.load(None, *arguments))))
    assert isinstance(trained.model, Decoder)
    logits, cache = trained.model.prefill(torch.zeros(2, 5, dtype=torch.int64))
    assert logits.isfinite().all()
    assert trained.model.decode(logits.argmax(-1), cache)[0].shape == logits.shape


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.kind=retnet", "model.value_dim=34"],
            "value_dim: 34 is not divisible by num_heads 4 (nearest: 32, 36)",
        ),
        (
            ["model.kind=transformer", "model.num_heads=32"],
            "num_heads: 32 leaves heads of size 1, and positions rope needs an even size (nearest: 2, 4, 8, 16)",
        ),
        (
            ["model.kind=ebt", "model.num_heads=32", "model.positions=xpos"],
            "num_heads: 32 leaves heads of size 1, and positions xpos needs an even size (nearest: 2, 4, 8, 16)",
        ),
        (
            ["model.kind=retnet", "model.dim=33"],
            "num_heads: no number of heads divides dim 33 into heads of even size, as positions rotation needs; "
            "make dim even",
        ),
        (["model.kind=longnet", "model.dilations=[1, 2, 300]"], "dilations: 300 is more than its segment length 256; "),
        (["model.kind=retnet", "model.positions=xpos"], "positions: 'xpos' is not accepted: accepted: none, rotation"),
        (
            ["model.kind=ebt", "model.thinking.detach=last-0"],
            "thinking.detach: unknown detach mode 'last-0'; accepted: ",
        ),
        (["model.kind=ebt", "model.preset=match-2m"], "preset: unknown preset 'match-2m': did you mean 'match-1m'? "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_size_that_does_not_fit_together_is_one_clear_line(
    overrides: list[str], message: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny.arguments(*overrides)]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert error.startswith(f"perjoule: model.{message}"), error
    assert error.count("\n") == 1
    assert not tiny.runs.exists()


def test_positions_that_cannot_reach_are_one_clear_line(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["data={kind: dyck, seq_len: 70000, num_train: 4, num_held_out: 2}"]
    arguments = [one for one in tiny.arguments() if not one.startswith("data.")]
    assert main(["train", *arguments, *far, "model.positions=xpos"]) == ConfigError.exit_code
    assert capsys.readouterr().err == (
        "perjoule: model.positions xpos has scales that float32 cannot hold at seq_len 70000; "
        "accepted: a seq_len of at most 65536, or model.positions rope or none\n"
    )


def test_thinking_that_leaves_the_finite_is_one_clear_line(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("model=ebt", "optimizer.lr=1e30", "schedule.warmup_steps=0")
    assert main(["train", *tiny.arguments(*overrides)]) == TrainingDiverged.exit_code
    assert capsys.readouterr().err == (
        "perjoule: thinking step 1 of 2: the energy's gradient at the candidate is not finite; "
        "lower model.thinking.step_size or optimizer.lr\n"
    )


@pytest.mark.parametrize("kind", ["transformer", "longnet", "ebt"])
def test_prompt_longer_than_the_positions_of_a_run_is_one_clear_line(kind: str, tiny: Tiny) -> None:
    trained = load_trained(run_of(tiny.train(f"model={kind}", "stop.steps=2")))
    assert isinstance(trained.model, Decoder)
    with pytest.raises(ConfigError) as refused:
        trained.model.prefill(torch.zeros(1, 17, dtype=torch.int64))
    assert str(refused.value) == (
        "a sequence of 17 tokens does not fit the model, which was built for seq_len 16; accepted: 1 to 16 tokens"
    )
