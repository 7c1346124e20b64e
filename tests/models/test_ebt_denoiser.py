from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perjoule.core.errors import ConfigError
from perjoule.models.contract import Trainable
from perjoule.models.ebt_denoiser import EBTDenoiser, EBTDenoiserConfig

SHAPE = {"image_size": 8, "num_channels": 2}


def tiny(**settings: Any) -> EBTDenoiser:
    sizes: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "patch_size": 4}
    return EBTDenoiserConfig(**(sizes | settings)).build(SHAPE)


def images(batch: int = 3) -> dict[str, Tensor]:
    clean = torch.randn(batch, 2, 1, 1).expand(-1, -1, 8, 8).contiguous()
    return {"clean": clean, "noisy": clean + 0.5 * torch.randn(batch, 2, 8, 8)}


def test_untrained_model_changes_nothing() -> None:
    model, batch = tiny(), images()
    assert isinstance(model, Trainable)
    assert torch.equal(model.think(batch["noisy"]).states[-1], batch["noisy"])
    expected = torch.nn.functional.smooth_l1_loss(batch["noisy"], batch["clean"])
    torch.testing.assert_close(model(batch).loss, expected)


@pytest.mark.parametrize("detach", ["all", "none", "last-1"])
def test_a_few_steps_learn_to_remove_noise(detach: str) -> None:
    torch.manual_seed(0)
    model = tiny(detach=detach, steps=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        output = model(images(16))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    with torch.no_grad():
        further = model.think(images()["noisy"], steps=5)
    assert len(further.states) == 5
    assert not further.states[-1].requires_grad


def test_a_batch_of_one_is_like_any_other() -> None:
    model, batch = tiny(), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    together = model.think(batch["noisy"]).states[-1]
    alone = model.think(batch["noisy"][:1]).states[-1]
    torch.testing.assert_close(together[:1], alone)


def test_flops_equal_what_torch_counts() -> None:
    with torch.device("meta"):
        model = EBTDenoiserConfig(dim=64, num_layers=2, num_heads=2, patch_size=2).build(
            {"image_size": 16, "num_channels": 3}
        )
        batch = {name: torch.zeros(8, 3, 16, 16) for name in ("clean", "noisy")}
    counter = FlopCounterMode(display=False)
    with counter:
        model(batch).loss.backward()
    assert counter.get_total_flops() / (8 * 64) == pytest.approx(model.flops_per_token(64).full, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 18, "num_heads": 2}, "dim 18 must be a multiple of num_heads 2 and of 4"),
        ({"dim": 16, "num_heads": 3}, "dim 16 must be a multiple of num_heads 3"),
        ({"detach": "some"}, "unknown detach mode 'some'"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EBTDenoiserConfig(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"vocab_size": 8}, "needs data with image_size and num_channels, such as images"),
        ({"image_size": 10, "num_channels": 1}, "patch_size 4 does not divide image_size 10; accepted: 1, 2, 5, 10"),
    ],
)
def test_unfit_data_is_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EBTDenoiserConfig().build(shape)
