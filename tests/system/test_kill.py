"""A process that is killed at any instant loses nothing that was recorded, and its run ends as if it had not been."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.forks import Forks
from tests.system.tiny import Tiny, losses, segments

from perjoule.runs.folder import MANIFEST, METRICS
from perjoule.runs.tables import load_run

KILLS = 10
RECIPE = ("stop.steps=60", "checkpoint.every_steps=5", "evaluate.every_steps=7", "batch.accumulation=2")


def count_lines(run: Path) -> int:
    metrics = run / METRICS
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def has_begun(run: Path, num_segments: int, num_lines: int) -> Callable[[], bool]:
    """Return whether a segment after these has begun and the metrics have so many lines."""

    def ready() -> bool:
        return (run / MANIFEST).exists() and len(segments(run)) > num_segments and count_lines(run) >= num_lines

    return ready


def test_ten_kills_leave_readable_records_and_bit_identical_losses(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    uninterrupted = tiny.losses_of(*RECIPE)
    run = tiny.runs / "killed"
    arguments = ["train", *tiny.arguments(*RECIPE, "name=killed")]
    generator = random.Random(20)
    num_kills = num_segments = num_lines = 0
    while num_kills < KILLS:
        process = forks.start(arguments, tmp_path / "output")
        process.wait_for(has_begun(run, num_segments, num_lines=num_lines + generator.randint(0, 4)))
        time.sleep(generator.uniform(0, 0.01))  # about one step
        process.send(signal.SIGKILL)
        ended = process.end()
        assert ended.code == -signal.SIGKILL, f"it ended before the kill: {ended}"
        num_kills += 1
        num_segments += 1
        num_lines = count_lines(run)
        after = load_run(run)
        assert after.status == "interrupted"
        assert all("ends within a step" in warning or "no readable journal" in warning for warning in after.warnings)
        assert len(after.segments) == num_segments
        for one in after.segments:
            timed = one.phases.steps.tolist() if one.phases is not None else []
            noted = after.steps.step[after.steps.segment == one.number].tolist()
            # A step is noted before it ends: the one that the kill met may be noted without its time.
            assert noted[: len(timed)] == timed
            assert len(noted) - len(timed) in (0, 1)
        arguments = ["train", "--resume", str(run)]
    ended = forks.start(arguments, tmp_path / "output").end()
    assert ended.code == 0, ended.err
    assert losses(run) == uninterrupted
    finished = load_run(run)
    assert (finished.status, len(finished.segments)) == ("finished", KILLS + 1)
    assert not any(path.name.endswith(".tmp") for path in (run / "checkpoints").iterdir())
