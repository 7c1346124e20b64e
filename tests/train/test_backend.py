"""How the arithmetic is chosen on machines that are not here, and that a given value is never overridden."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.system.tiny import Tiny, resume, run_of, segments
from torch import nn

from perjoule.measure.machine import MachineProfile
from perjoule.train import probe
from perjoule.train.backend import Backend, Early, choose, prepare
from perjoule.train.config import BackendConfig
from perjoule.train.distributed import Ranks
from perjoule.train.probe import MatmulRate

CPU = torch.device("cpu")
# Rates and errors as measured on the three kinds of CPU.
AMD = {"float32-highest": MatmulRate(100e9, 3e-7), "float32-medium": MatmulRate(150e9, 3e-7)}
AMX = {
    "float32-highest": MatmulRate(436e9, 3e-7),
    "float32-medium": MatmulRate(1.8e12, 2e-3),
    "bf16": MatmulRate(3.6e12, 3e-3),
}
AVX2 = {"float32-highest": MatmulRate(120e9, 3e-7), "float32-medium": MatmulRate(110e9, 3e-7)}
SLOW_BF16 = {**AVX2, "bf16": MatmulRate(130e9, 3e-3)}
Choose = Callable[..., Backend]


@pytest.fixture
def profile(tmp_path: Path) -> MachineProfile:
    return MachineProfile(tmp_path)


@pytest.fixture
def choose_on(profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Return a function that chooses for a machine with the given rates."""
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)

    def on(rates: dict[str, MatmulRate], **given: Any) -> Backend:
        monkeypatch.setattr(probe, "matmul_rates", lambda profile: rates)
        return choose(BackendConfig(**given), CPU, Early("system", 1, ()), profile)

    return on


@pytest.mark.parametrize(
    ("rates", "matmul", "precision"),
    [
        pytest.param(AMD, "medium", "float32", id="AMD: medium is exact and faster"),
        pytest.param(AMX, "highest", "bf16-autocast", id="AMX: medium rounds, bf16 is faster"),
        pytest.param(AVX2, "highest", "float32", id="AVX2: no bf16"),
        pytest.param(SLOW_BF16, "highest", "float32", id="bf16 that is not faster"),
    ],
)
def test_the_fastest_exact_product_is_chosen(
    choose_on: Choose, rates: dict[str, MatmulRate], matmul: str, precision: str
) -> None:
    backend = choose_on(rates)
    assert backend.settings["matmul"] == matmul
    assert backend.settings["precision"] == precision
    first, second = backend.why
    assert first.startswith(f"matmul {matmul}: highest ")
    assert second.startswith(f"precision {precision}: bf16 ")
    assert ("not float32 on this CPU" in first) == (rates is AMX)
    assert ("not in this CPU's hardware" in second) == ("bf16" not in rates)


@pytest.mark.parametrize("precision", ["float32", "bf16-autocast", "bf16"])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("rates", [AMD, AMX], ids=["AMD", "AMX"])
def test_given_values_are_never_overridden(
    choose_on: Choose, rates: dict[str, MatmulRate], precision: str, matmul: str
) -> None:
    settings = choose_on(rates, precision=precision, matmul=matmul, fused_optimizer=False).settings
    assert (settings["precision"], settings["matmul"], settings["fused_optimizer"]) == (precision, matmul, False)
    half = choose_on(rates, precision=precision).settings
    assert half["precision"] == precision
    assert half["matmul"] == choose_on(rates).settings["matmul"]
    assert half["fused_optimizer"] is True


def test_a_path_that_is_not_timed_is_compared_by_the_exact_one(choose_on: Choose) -> None:
    assert choose_on(AMX, matmul="high").settings["precision"] == "bf16-autocast"


def test_nothing_is_probed_when_everything_is_given(profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "matmul_rates", lambda profile: pytest.fail("it probed"))
    assert choose(BackendConfig(preset="plain"), CPU, Early("system", 1, ()), profile).why == []


def test_pure_bf16_is_never_chosen_and_warns_when_given(choose_on: Choose) -> None:
    assert choose_on(AMX).settings["precision"] == "bf16-autocast"
    assert choose_on(AMX, precision="bf16", matmul="highest").why == [
        "bf16 weights round away updates below about 0.4 % of a weight; bf16-autocast keeps them"
    ]


@pytest.mark.parametrize(
    ("native", "precision", "why"),
    [(True, "bf16-autocast", "the device has bf16"), (False, "float32", "the device lacks bf16")],
)
def test_an_accelerator_computes_in_bf16_where_it_has_it(
    profile: MachineProfile, monkeypatch: pytest.MonkeyPatch, native: bool, precision: str, why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    backend = choose(BackendConfig(), torch.device("cuda:0"), Early("system", 1, ()), profile)
    assert (backend.settings["precision"], backend.settings["matmul"]) == (precision, "highest")
    assert backend.why == [f"precision {precision}: {why}"]
    assert backend.peak(profile) == {
        "unavailable": "no peak was measured on cuda:0; perjoule doctor measures CPUs only so far"
    }


def backend_of(**settings: Any) -> Backend:
    return Backend(CPU, {"precision": "float32", "matmul": "highest", "compile": "auto", **settings})


def test_compiling_is_worth_it_only_if_enough_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    compiled = nn.Linear(1, 1)
    monkeypatch.setattr(torch, "compile", lambda model: compiled)
    model = nn.Linear(1, 1)

    def decide(steps: int | None, seconds: float | None) -> tuple[bool, str]:
        backend = backend_of()
        called = backend.compiled(model, lambda: 0.5, steps, lambda: seconds)
        assert backend.settings["compile"] is (called is compiled)
        return called is compiled, backend.why[0]

    costs = "are left, and compiling costs about 40 s to save 35% of that"
    assert decide(1000, None) == (True, f"compile: an eager step takes 500 ms, 500 s {costs}")
    assert decide(100, None)[0] is False
    bounded = costs.replace("about 40 s", "up to 200 s")
    assert decide(1000, 60.0) == (False, f"no compile: an eager step takes 500 ms, 60 s {bounded}")
    assert decide(None, 400.0)[0] is False, "it may take five times as long, and the rest must be worth it"
    assert decide(None, 3600.0)[0] is True
    assert decide(19, None) == (False, "no compile: 19 steps cannot repay it")


def test_compiling_waits_until_it_is_known_how_long_a_budget_lasts() -> None:
    lasting = iter([0, 0, 0, 0, 30.0])
    backend = backend_of(compile="auto")
    model = torch.nn.Linear(2, 2)
    assert backend.compiled(model, lambda: 0.5, None, lambda: next(lasting)) is model
    assert backend.eager_step_s == 0.5
    assert backend.why[-1].startswith("no compile: an eager step takes 500 ms, 30 s are left")


@pytest.mark.parametrize("asked", ["auto", True])
def test_a_model_that_differentiates_within_its_forward_pass_is_not_compiled(asked: Any) -> None:
    class Inner(nn.Linear):
        compilable = False

    backend, model = backend_of(compile=asked), Inner(1, 1)
    assert backend.compiled(model, lambda: 100.0, 10_000, lambda: None) is model
    assert backend.settings["compile"] is False
    assert backend.why == ["no compile: Inner takes gradients within its forward pass"]


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    backend, model = backend_of(), nn.Linear(1, 1)
    assert backend.compiled(model, lambda: 100.0, 10_000, lambda: None) is model
    assert backend.why == ["no compile: no C++ compiler on the path"]


def test_a_given_choice_about_compiling_is_followed_without_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = nn.Linear(1, 1), nn.Linear(1, 1)
    monkeypatch.setattr(torch, "compile", lambda model: compiled)

    def time_step() -> float:
        pytest.fail("it was timed")

    assert backend_of(compile=False).compiled(model, time_step, 10_000, lambda: None) is model
    assert backend_of(compile=True).compiled(model, time_step, 1, lambda: None) is compiled


class Attentive(nn.Module):
    """A model that lets its kernel be chosen."""

    kernel = ""

    def attention_probe(self, rows: int) -> tuple[dict[str, Callable[..., torch.Tensor]], tuple[int, int, int, int]]:
        def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return query + key + value

        return {"sdpa": sdpa, "blocked": sdpa}, (rows, 2, 8, 4)

    def set_attention(self, name: str) -> None:
        self.kernel = name


def test_the_faster_attention_kernel_is_taken(profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter(())
    monkeypatch.setattr(probe, "best_s", lambda run, budget_s: next(times))
    for seconds, fastest in (((2e-3, 1e-3), "blocked"), ((1e-3, 2e-3), "sdpa")):
        times = iter(seconds)
        backend, model = backend_of(attention="auto"), Attentive()
        backend.tune(model, rows=3, profile=profile)
        assert (model.kernel, backend.settings["attention"]) == (fastest, fastest)
        assert backend.why[0].startswith(f"attention {fastest}: forward and backward take sdpa ")
        times = iter(())  # a second time it is known
        backend_of(attention="auto").tune(Attentive(), rows=3, profile=profile)
        profile.forget()


def test_a_given_kernel_and_a_model_without_attention_are_left_alone(profile: MachineProfile) -> None:
    model = Attentive()
    backend_of(attention="blocked").tune(model, rows=3, profile=profile)
    assert model.kernel == "blocked"
    backend = backend_of(attention="auto")
    backend.tune(nn.Linear(1, 1), rows=3, profile=profile)
    assert backend.settings["attention"] == "sdpa"


def test_the_peak_is_that_of_the_precision_or_says_why_there_is_none(profile: MachineProfile) -> None:
    reason = {"unavailable": "no peak was measured on this machine; run `perjoule doctor` once"}
    assert backend_of().peak(profile) == reason
    threads = torch.get_num_threads()
    rates = {name: {"flops": rate.flops, "error": rate.error} for name, rate in AMX.items()}
    profile.put(probe.matmul_key(), rates)
    assert backend_of().peak(profile) == {
        "flops": 436e9,
        "precision": "float32-highest",
        "how": f"best measured matrix product in float32-highest, {threads} threads, this machine",
    }
    assert backend_of(precision="bf16-autocast").peak(profile)["flops"] == 3.6e12
    del rates["bf16"]
    profile.put(probe.matmul_key(), rates)
    assert backend_of(precision="bf16").peak(profile) == {"unavailable": "the peak of bf16 is not measured"}


def test_ranks_on_one_node_share_its_cores(monkeypatch: pytest.MonkeyPatch, profile: MachineProfile) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(probe, "best_threads", lambda profile, most: (most, "timed"))
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("perjoule.train.backend.num_cores", lambda: 8)
    for local_world_size in (1, 2, 16):
        prepare(BackendConfig(allocator="system"), Ranks(0, 16, 0, local_world_size), profile)
    prepare(BackendConfig(allocator="system", threads=3), Ranks(), profile)
    prepare(BackendConfig(allocator="system", threads="torch"), Ranks(), profile)
    assert chosen == [8, 4, 1, 3]


def test_an_allocator_that_cannot_be_set_is_not_claimed(
    monkeypatch: pytest.MonkeyPatch, profile: MachineProfile
) -> None:
    def no_library(name: str) -> None:
        raise OSError("another libc")

    monkeypatch.setattr("perjoule.train.backend.ctypes.CDLL", no_library)
    assert prepare(BackendConfig(threads="torch"), Ranks(), profile).allocator == "system"


def test_fewer_threads_are_taken_only_if_clearly_faster(profile: MachineProfile) -> None:
    profile.put(probe.threads_key(8), {"4": 0.0095, "8": 0.0100})
    assert probe.best_threads(profile, 8)[0] == 8
    profile.put(probe.threads_key(8), {"4": 0.0080, "8": 0.0100})
    assert probe.best_threads(profile, 8) == (4, "4 8 ms, 8 10 ms")


def test_numbers_of_threads_are_timed_once_and_put_back(profile: MachineProfile) -> None:
    before = torch.get_num_threads()
    chosen, figures = probe.best_threads(profile, 2, budget_s=0.001)
    assert torch.get_num_threads() == before
    assert chosen in {1, 2}
    assert set(profile.get(probe.threads_key(2)) or {}) == {"1", "2"}
    assert probe.best_threads(MachineProfile(profile.path.parent), 2) == (chosen, figures)


def test_what_was_measured_with_another_allocator_is_measured_again(
    profile: MachineProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SHAPES", ((32, 16, 8),))
    kept: list[dict[str, float]] = []
    for allocator in ("system", "keep", "system"):
        monkeypatch.setattr(probe, "_process", {"allocator": "system"})
        monkeypatch.setattr("perjoule.train.backend._keep_freed_memory", lambda: True)
        prepare(BackendConfig(allocator=allocator, threads="torch"), Ranks(), profile)
        probe.matmul_rates(profile, budget_s=0.001)
        kept.append((profile.get(probe.matmul_key()) or {})["float32-highest"])
        probe.optimizer_seconds(profile, 1000, budget_s=0.001)
        probe.best_threads(profile, 1, budget_s=0.001)
    keys = json.loads(profile.path.read_text(encoding="utf-8")).keys()
    assert kept[0] == kept[2]
    for kind in ("matmul", "adamw", "threads"):
        assert len([key for key in keys if key.startswith(f"{kind}/")]) == 2, keys


def test_measuring_again_keeps_the_better_rate(profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHAPES", ((32, 16, 8),))
    probe.matmul_rates(profile, budget_s=0.001)
    stored = profile.get(probe.matmul_key()) or {}
    profile.put(probe.matmul_key(), {**stored, "float32-highest": {"flops": 1e18, "error": 0.0}})
    again = probe.matmul_rates(profile, budget_s=0.001, again=True)
    assert again["float32-highest"].flops == 1e18
    assert again["float32-highest"].error > 0


def test_adamw_is_timed_in_both_kinds(profile: MachineProfile) -> None:
    seconds = probe.optimizer_seconds(profile, num_weights=1000, budget_s=0.001)
    assert set(seconds) == {"fused", "plain"}
    assert all(value > 0 for value in seconds.values())
    assert probe.optimizer_seconds(profile, num_weights=1000) == seconds


def test_measured_products_are_right_and_kept(profile: MachineProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHAPES", ((32, 16, 8),))
    before = torch.get_float32_matmul_precision()
    rates = probe.matmul_rates(profile, budget_s=0.001)
    assert torch.get_float32_matmul_precision() == before
    assert {"float32-highest", "float32-medium"} <= rates.keys()
    assert ("bf16" in rates) == probe.cpu_has_bf16()
    assert 0 < rates["float32-highest"].error < probe.ACCURATE
    assert all(rate.flops > 0 for rate in rates.values())
    assert probe.matmul_rates(MachineProfile(profile.path.parent)) == rates, "read back, not measured again"


def test_best_time_leaves_out_the_first_call() -> None:
    calls: list[int] = []
    assert 0 < probe.best_s(lambda: calls.append(1), 0.0) < 0.1
    assert len(calls) == 2


def test_auto_is_decided_recorded_and_kept_by_a_resumed_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "matmul_rates", lambda profile: AMX)
    run = run_of(tiny.train("backend=auto", "backend.threads=1"))
    monkeypatch.setattr(probe, "matmul_rates", lambda profile: AVX2)
    resume(run, "stop.steps=7")
    first, second = (segment["backend"]["chosen"] for segment in segments(run))
    assert "auto" not in first.values()
    assert (first["precision"], first["compile"]) == ("bf16-autocast", False)
    assert first == second
    resume(run, "stop.steps=8", "backend.precision=float32")
    assert segments(run)[2]["backend"]["chosen"]["precision"] == "float32"
