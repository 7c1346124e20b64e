"""The presets of a comparison have the parameters and the FLOPs that they promise, counted on the meta device."""

import subprocess
import sys
from functools import cache

import pytest
import torch
from tests.models.every_model import counted_flops_per_token
from torch import nn

from perjoule.core.errors import ConfigError
from perjoule.models import SHELF
from perjoule.models.contract import count_parameters
from perjoule.models.ebt import EBT
from perjoule.models.layers.language import LanguageModel
from perjoule.models.matched import KINDS, STATED, Data, build_on_meta, main, matched_table


def body_parameters(model: nn.Module) -> int:
    """Count the weights besides the embeddings, the output matrix and a step size."""
    tables = [weight.numel() for name, weight in model.named_parameters() if name.endswith("embedding.weight")]
    tables += [weight.numel() for name, weight in model.named_parameters() if name == "output.weight"]
    assert len(tables) == 2
    return count_parameters(model) - sum(tables) - isinstance(model, EBT)


@cache
def counted_flops(kind: str, preset: str, size: str) -> float:
    """Return what torch counts in a training step, per token, but for scores that EBT's slope forms again."""
    data = STATED[size]
    model = build_on_meta(kind, preset, data)
    again = 0
    if isinstance(model, EBT):
        again = model.config.thinking.steps * model.config.num_layers * 4 * model.config.dim * data.seq_len
    return counted_flops_per_token(model, data.seq_len) - again


@pytest.mark.parametrize("size", STATED)
@pytest.mark.parametrize("kind", KINDS)
def test_counted_bodies_agree_within_two_percent(kind: str, size: str) -> None:
    own, transformer = (body_parameters(build_on_meta(one, f"match-{size}", STATED[size])) for one in (kind, KINDS[0]))
    assert own == pytest.approx(transformer, rel=0.02)
    assert own == pytest.approx(float(size.removesuffix("m")) * 1e6, rel=0.07)


@pytest.mark.parametrize("size", STATED)
@pytest.mark.parametrize("kind", KINDS)
def test_stated_flops_agree_within_five_percent_in_both_conventions(kind: str, size: str) -> None:
    row = next(row for row in matched_table(size) if (row.kind, row.preset) == (kind, f"match-{size}-flops"))
    assert row.causal_ratio == pytest.approx(1, abs=0.05)
    assert row.full_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", ["1m", "10m"])
@pytest.mark.parametrize("kind", KINDS)
def test_counted_flops_agree_within_five_percent(kind: str, size: str) -> None:
    preset = f"match-{size}-flops"
    assert counted_flops(kind, preset, size) == pytest.approx(counted_flops("transformer", preset, size), rel=0.05)


def test_table_names_every_model_and_takes_ratios_to_the_transformer() -> None:
    rows = matched_table("1m", seq_len=64, vocab_size=300)
    assert [row.kind for row in rows] == [*KINDS, *KINDS]
    assert [row.preset for row in rows] == ["match-1m"] * 4 + ["match-1m-flops"] * 4
    assert (rows[0].body_ratio, rows[0].full_ratio, rows[0].causal_ratio) == (1.0, 1.0, 1.0)
    for row in rows:
        model = build_on_meta(row.kind, row.preset, Data(64, 300))
        assert (row.body_parameters, row.parameters) == (body_parameters(model), count_parameters(model))
        assert row.body_ratio == row.body_parameters / rows[0].body_parameters
        assert row.full_ratio == row.flops.full / rows[0].flops.full
        assert row.causal_ratio == row.flops.causal / rows[0].flops.causal


def test_heads_of_fused_attention_have_sizes_that_gpus_accept() -> None:
    for kind in KINDS:
        for preset in (f"match-{size}{suffix}" for size in STATED for suffix in ("", "-flops")):
            config = SHELF.load(kind)(preset=preset)
            assert config.head_dim % 8 == 0, (kind, preset)
            assert config.ffn_width % 16 == 0, (kind, preset)


def test_every_place_of_a_stride_has_heads_in_matched_longnets() -> None:
    for size in STATED:
        config = SHELF.load("longnet")(preset=f"match-{size}")
        assert max(config.segment_lengths) == STATED[size].seq_len
        for pattern in config.patterns:
            assert set(pattern.offsets(config.num_heads).tolist()) == set(range(pattern.dilation))


def test_the_smallest_size_learns_in_every_architecture() -> None:
    tokens = torch.randint(64, (2, 33))
    batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
    for kind in KINDS:
        model = SHELF.load(kind)(preset="match-1m-flops").build({"vocab_size": 64, "seq_len": 32})
        assert isinstance(model, LanguageModel | EBT)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = model(batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.3, kind


def test_command_prints_one_size_at_the_data_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["1m", "--seq-len", "64", "--vocab-size", "300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "match-1m at 64 tokens, vocabulary of 300 (multiples of the Transformer's)"
    assert len(lines) == 2 + 8
    assert lines[2].split()[:4] == ["transformer", "match-1m", "0.997", "M"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_unknown_size_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["2m"])
    assert exit_.value.code == ConfigError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("unknown size '2m': ")
    assert "100m, 10m, 1m" in error
    assert error.count("\n") == 1


def test_module_runs_as_a_program_and_prints_every_size() -> None:
    command = [sys.executable, "-m", "perjoule.models.matched"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("match-100m-flops") == len(KINDS)
