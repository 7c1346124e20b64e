"""Time and memory of a report on a run of a million steps, metered for three hours by four meters.

    python -m benchmarks.long_run [--steps 1000000]

The run folder is made in the formats that the recorder and the sampler write, not by training.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from perjoule.core.phases import RECORDED, STEP, TRAINING
from perjoule.measure.contract import Form, Sensor
from perjoule.runs.folder import FINISHED, METRICS, RunFolder, event_path, sample_path
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, JournalWriter
from perjoule.runs.mapped import MASK, MIX
from perjoule.runs.sample_writer import SampleWriter

STEP_NS, READING_NS = 10_000_000, 100_000_000
EDGES_NS = (0, 0, 1_000_000, 1_000_000, 1_100_000, 1_100_000, 4_000_000, 4_000_000, 9_000_000, 9_000_000, 9_990_000)
SENSORS = (
    Sensor("package-0", Form.COUNTER, "package", "RAPL", "µJ", 0.001, idle_w=5.0),
    Sensor("gpu-GPU-1", Form.COUNTER, "gpu", "NVML energy counter", "µJ", 0.1, accuracy=(0.9, 1.08)),
    Sensor("gpu-GPU-1", Form.POWER, "gpu", "NVML power", "µW", 0.1, window_s=0.025, accuracy=(0.9, 1.08)),
    Sensor("monitor", Form.LEVEL, "process", "processor time of the sampler", "ns", 1e-9),
)
POWER_W = (90.0, 300.0, 300.0)


def main() -> None:
    """Make the run, report on it in a process of its own, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "long"
        make_run(path, steps)
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "perjoule", "report", str(path)], check=True, stdout=subprocess.DEVNULL)
        lasted_s = time.monotonic() - begun
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        folder_mb = sum(file.stat().st_size for file in path.rglob("*.*") if file.is_file()) / 1e6
    print(f"{steps:,} steps, {folder_mb:.0f} MB: report in {lasted_s:.1f} s, peak memory {peak_mb:.0f} MB")
    print(f"load average {os.getloadavg()[0]:.2f}")


def make_run(path: Path, steps: int) -> None:
    """Write a finished run of ``steps`` steps of 10 ms."""
    run = RunFolder.create(path, "seed: 0\n", {}, {"recipe": "long"})
    segment = run.begin_segment({"world_size": 1, "first_step": 1, "warmup_steps": 3})
    first_ns = time.monotonic_ns()
    last_ns = write_journal(event_path(path, segment, 0), steps, first_ns)
    with (path / METRICS).open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            file.write(
                f'{{"kind":"step","segment":0,"step":{step},"loss":{2 + 6 / step**0.5:.4f},"grad_norm":1.0,"lr":0.1,'
                '"samples":8,"tokens":2048,"useful":2048,"memory_bytes":100}\n'
            )
    write_samples(sample_path(path, segment, "node"), first_ns - 5 * READING_NS, last_ns + 5 * READING_NS)
    run.end(FINISHED, "made by a benchmark")
    run.close()


def write_journal(path: Path, steps: int, first_ns: int) -> int:
    """Write the journal of one rank and return its last moment."""
    writer = JournalWriter(path, RECORDED, {"rank": 0, "segment": 0, "node": "node", "device": ""})
    edges = [(STEP, BEGIN), *((phase, kind) for phase in TRAINING for kind in (BEGIN, END)), (STEP, END)]
    codes = np.array([writer.code(phase, kind) for phase, kind in edges], np.uint64)
    writer.close()
    random = np.random.default_rng(0)
    begins = first_ns + np.cumsum(STEP_NS * (1 + 0.02 * random.standard_normal(steps))).astype(np.int64)
    records = np.zeros(steps * len(codes), RECORD_DTYPE)
    records["t_ns"] = (begins[:, None] + np.array([*EDGES_NS, EDGES_NS[-1]])).ravel()
    records["cpu_ns"] = records["t_ns"] - first_ns
    records["step"] = np.repeat(np.arange(1, steps + 1), len(codes))
    code = np.tile(codes, steps)
    records["phase"], records["kind"] = code >> np.uint64(1), code & np.uint64(1)
    sequence = np.arange(1, len(records) + 1, dtype=np.uint64)
    moment, used = records["t_ns"].astype(np.uint64), records["cpu_ns"].astype(np.uint64)
    mixed = moment ^ used << np.uint64(1) ^ (records["step"].astype(np.uint64) << np.uint64(16) | code) * np.uint64(MIX)
    records["sequence"] = sequence & np.uint64(MASK)
    records["check"] = (mixed ^ mixed >> np.uint64(32) ^ sequence * np.uint64(MIX)) & np.uint64(MASK)
    with path.open("ab") as file:
        file.write(records.tobytes())
    return int(records["t_ns"][-1])


def write_samples(path: Path, begin_ns: int, end_ns: int) -> None:
    """Write ten readings a second of every sensor."""
    random = np.random.default_rng(1)
    writer = SampleWriter(path, [asdict(one) for one in SENSORS], {"node": "node", "rate_hz": 10.0, "unavailable": []})
    for due_ns in range(begin_ns, end_ns, READING_NS):
        at_ns = due_ns + int(random.integers(READING_NS))
        for channel, (sensor, power_w) in enumerate(zip(SENSORS, (*POWER_W, 0.0), strict=True)):
            noisy_w = power_w * (1 + 0.05 * random.standard_normal())
            raw = {
                Form.COUNTER: (at_ns - begin_ns) / 1e3 * power_w,
                Form.POWER: 1e6 * noisy_w,
                Form.LEVEL: (at_ns - begin_ns) * 0.003,
            }[sensor.form]
            writer.put(channel, at_ns, at_ns + 20_000, round(raw))
    writer.close()


if __name__ == "__main__":
    main()
