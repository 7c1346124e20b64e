"""Two ranks of one node share a sampler, a budget and the number of repetitions of a burst."""

import itertools
import json
from pathlib import Path

import pytest
from tests.system.test_torchrun import start
from tests.system.tiny import Tiny, losses, metrics

from perjoule.measure.contract import Site
from perjoule.runs.folder import event_path, read_manifest
from perjoule.runs.journal import BEGIN, read_journal
from perjoule.runs.samples import read_samples, sample_files
from perjoule.train.distributed import Ranks
from perjoule.train.metering import Metering, Place


def test_two_ranks_share_one_sampler_and_end_at_one_budget(tiny: Tiny) -> None:
    series = tiny.corpus.parent / "five_watts.csv"  # measured: a modelled power is not worth a calibration
    series.write_text("time_s,power_w\n" + "".join(f"{second},5\n" for second in range(600)), encoding="utf-8")
    meter = f"{{kind: replay, path: {series}, scope: gpu}}"
    overrides = ("name=two", "stop={energy: 60 J}", f"energy={{sampler: process, meters: {meter}, calibrate: true}}")
    process = start(["train", *tiny.arguments(*overrides, "energy.burst_s=0.5", "batch.size=8")])
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    run = tiny.runs / "two"
    assert "60 J" in read_manifest(run)["reason"]
    journals = [read_journal(event_path(run, 0, rank)) for rank in (0, 1)]
    (path,) = sample_files(run, 0)
    samples = read_samples(path)
    assert samples.header["processes"] == [journal.header["pid"] for journal in journals]
    assert len({journal.header["node"] for journal in journals}) == 1
    assert len(samples.of(0)[0]) > 2
    repeats = []
    for journal in journals:
        begun = journal.records[(journal.records["step"] == 0) & (journal.records["kind"] == BEGIN)]
        names = [journal.phases[number] for number in begun["phase"]]
        repeats.append([(name, len(list(group))) for name, group in itertools.groupby(names)])
    assert repeats[0] == repeats[1]
    assert dict(repeats[0]).keys() >= {"calibrate", "calibrate/backward"}
    evaluated = [line["step"] for line in metrics(run, "evaluate")]
    assert evaluated in ([], [len(losses(run))]), "what calibrating has used may leave no room for it"


class Peers(Ranks):
    """A rank that is told what the others say."""

    places: tuple[Place, ...] = ()

    def gather(self, value: object) -> list[object]:
        return [tuple(place) for place in self.places]


def test_the_first_rank_of_each_node_looks_after_its_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    import perjoule
    from perjoule.train.console import Console

    places = (Place("a", 1, "GPU-x"), Place("a", 2, "GPU-y"), Place("b", 3, ""), Place("b", 4, ""))
    monkeypatch.setattr(Peers, "places", places)
    started: list[tuple[str, Site, str]] = []

    def start_sampler(path: Path, config: object, site: Site, node: str, facts: object) -> str:
        started.append((path.name, site, node))
        return node

    monkeypatch.setattr("perjoule.train.metering.Sampler.start", start_sampler)
    config = perjoule.load(None, *tiny.arguments("energy.sampler=process")).config
    led: list[object] = []
    for rank, place in enumerate(places):
        metering = Metering.start(config, tmp_path, 2, Peers(rank, 1), place, Console(silent=True))
        led.append(metering.sampler)
        assert metering.nodes == ("a", "b")
        json.dumps(metering.facts())
    assert led == ["a", None, "b", None]
    assert [(name, node) for name, _, node in started] == [("0002-a-0.bin", "a"), ("0002-b-0.bin", "b")]
    sites = [(site.pids, site.devices) for _, site, _ in started]
    assert sites == [((1, 2), ("GPU-x", "GPU-y")), ((3, 4), ())]
