from pathlib import Path
from typing import Any

import pytest
from tests.runs.synthetic import SyntheticRun

from perjoule.report.what_ran import Block, Entry, Grid, Listing, blocks
from perjoule.runs.tables import Run, load_run

SPLIT = {"documents": 597, "bytes": 10_618_263, "tokens": 3_032_617, "num_samples": 11_846, "ignored_fraction": 0.0002}
HASH = "04d230376a7db2e9a616772cc89576d1"


def texts(block: Block) -> dict[str, str]:
    return {entry.name: entry.text for entry in block.entries}


def by_title(run: Run) -> dict[str, Block]:
    return {block.title: block for block in blocks(run)}


def test_there_is_a_block_for_the_run_its_parts_and_every_segment(resumed: Run) -> None:
    known = by_title(resumed)
    assert list(known) == ["Run", "Model", "Data", "Segment 0", "Segment 1"]
    assert known["Run"].entries[0] == Entry("folder", str(resumed.path), code=True)
    assert texts(known["Run"])["recipe"] == "default"
    assert texts(known["Model"])["parameters"] == "5,264,640"
    assert texts(known["Model"])["FLOPs per token"] == "30M"
    assert texts(known["Data"]) == {"kind": "text", "vocab size": "4,096", "seq len": "256", "documents": "1,200"}


def test_a_segment_says_where_and_how_it_ran(resumed: Run) -> None:
    first, second = by_title(resumed)["Segment 0"], by_title(resumed)["Segment 1"]
    assert texts(first)["steps"] == "1 to ?, the first 2 of them warm-up"
    assert texts(second)["steps"] == "11 to 20, the first 2 of them warm-up"
    assert texts(second)["start-up"] == "2 s: import 1.25 s · data 500 ms · model 250 ms"
    assert texts(first)["host"] == "name here · cpu Test CPU · cores 2 · python 3.11 · torch 2.13 · perjoule 0.1"
    assert texts(first)["peak"] == "2.7 TFLOP/s, bf16, measured by perjoule doctor"
    assert texts(first)["backend"] == "precision bf16"
    assert first.listings == [Listing("why this backend", ("the CPU has AMX",))]


def test_a_segment_without_facts_shows_what_there_is(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a", model=None, recipe=None)
    run.segment(host=None, backend=None, peak={}, startup_s=None)
    known = by_title(load_run(run.kill()))
    assert list(known) == ["Run", "Data", "Segment 0"]
    assert list(texts(known["Segment 0"])) == ["steps", "time", "device", "peak"]
    assert texts(known["Segment 0"])["peak"] == "not known"
    assert texts(known["Segment 0"])["time"].endswith(" – unknown")


def test_a_total_beside_the_parts_of_the_start_up_is_not_counted_again(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(startup_s={"import": 1.0, "data": 2.0, "other": 0.5, "total": 3.5})
    block = by_title(load_run(run.kill()))["Segment 0"]
    assert texts(block)["start-up"] == "3.5 s: import 1 s · data 2 s · other 500 ms"


def test_splits_become_the_rows_of_a_grid() -> None:
    block = Block("Data").add({"facts": {"splits": {"train": SPLIT, "test": SPLIT | {"documents": 26}}}})
    assert block.entries == []
    assert block.grids == [
        Grid(
            ("splits", "documents", "tokens", "samples", "ignored"),
            (("train", "597", "3,032,617", "11,846", "0.02 %"), ("test", "26", "3,032,617", "11,846", "0.02 %")),
        )
    ]


def test_a_split_that_has_no_samples_says_why() -> None:
    empty = {"documents": 0, "bytes": 0, "tokens": 0, "unavailable": "too short"}
    (grid,) = Block("Data").add({"splits": {"train": SPLIT, "test": empty}}).grids
    assert grid.headings[-1] == "unavailable"
    assert grid.rows[0][-1] == "–"
    assert grid.rows[1] == ("test", "0", "0", "–", "–", "too short")


def test_other_things_of_the_same_shape_show_all_their_facts() -> None:
    (grid,) = Block("Data").add({"sensors": {"a": {"rate": 1.5}, "b": {"rate": 2.0, "size_bytes": 2_500_000}}}).grids
    assert grid == Grid(("sensors", "rate", "size bytes"), (("a", "1.5", "–"), ("b", "2", "2.5 MB")))


def test_nested_facts_are_named_by_what_they_are_nested_in() -> None:
    block = Block("Data").add({"kind": "text", "facts": {"kind": "text", "tokenizer": {"vocab_size": 4096}}})
    assert texts(block) == {"kind": "text", "tokenizer vocab size": "4,096"}
    assert len(block.entries) == 2


def test_hashes_are_cut_short_and_kept_behind() -> None:
    block = Block("Data").add({"hash": HASH, "identity": f"tokens-{HASH}", "short": HASH[:16], "path": f"/a/{HASH}"})
    assert block.entries == [
        Entry("hash", "04d230376a7d…", code=True, full=HASH),
        Entry("identity", "tokens-04d230376a7d…", code=True, full=f"tokens-{HASH}"),
        Entry("short", "04d230376a7db2e9"),
        Entry("path", f"/a/{HASH}", code=True),
    ]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("x", None, "–"),
        ("x", True, "yes"),
        ("x", False, "no"),
        ("num_rows", 1200, "1,200"),
        ("bytes", 2_500_000, "2.5 MB"),
        ("spent_s", 125.0, "2 min 05 s"),
        ("ignored_fraction", 0.25, "25 %"),
        ("flops", 1.8e12, "1.8T"),
        ("x", 0.285547645, "0.285548"),
        ("x", 3.0, "3"),
        ("x", float("nan"), "nan"),
        ("x", float("inf"), "inf"),
        ("x", [1, "a"], "1, a"),
        ("x", [], "none"),
        ("x", {}, "none"),
        ("x", [{"a": 1, "b": [2]}], "a 1 · b 2"),
    ],
)
def test_values_are_shown_in_the_unit_of_their_name(key: str, value: Any, text: str) -> None:
    (entry,) = Block("Data").add({key: value}).entries
    assert entry.text == text


def test_sentences_become_a_list() -> None:
    sentences = ["a first sentence that is long enough", "b"]
    assert Block("Data").add({"notes": sentences}).listings == [Listing("notes", tuple(sentences))]


@pytest.mark.parametrize("path", ["/a/b", "~/a", "./a", "../a", "C:\\a"])
def test_paths_are_code(path: str) -> None:
    assert Block("Data").add({"store": path}).entries == [Entry("store", path, code=True)]


def test_what_is_no_path_is_text() -> None:
    assert Block("Data").add({"source": "https://example.org/a"}).entries == [Entry("source", "https://example.org/a")]
