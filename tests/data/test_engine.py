"""Units of work are done once each, wherever they run; errors reach the caller, and nothing is left running."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perjoule.core.errors import ConfigError, DataError, MissingExtra
from perjoule.data import engine_dask
from perjoule.data.engine import Amount, CannotWrite, Report, Work, give_back_memory, run_here, run_pool
from perjoule.data.engine_dask import slurm_cluster
from perjoule.data.engines import Engine, EngineConfig


@dataclass(frozen=True)
class Named:
    """A unit of work that is only a name."""

    name: str


JOBS = [Named(f"unit-{number}") for number in range(12)]


@dataclass(frozen=True)
class Note:
    """Writes down which process did a unit, and whether it had torch or ran the caller's script."""

    folder: Path

    def __call__(self, job: Named, threads: int, report: Report) -> None:
        line = f"{os.getpid()} {threads} {'torch' in sys.modules}\n"
        with (self.folder / job.name).open("a") as file:
            file.write(line)
        report(Amount(documents=1))
        report(Amount(tokens=10))


@dataclass(frozen=True)
class Fail:
    """Fails at one unit, in the way that is asked for."""

    how: str

    def __call__(self, job: Named, threads: int, report: Report) -> None:
        if job.name != "unit-3":
            return
        match self.how:
            case "own":
                raise ConfigError("a line for the user")
            case "disk":
                raise OSError(28, "No space left on device", "/data/shard")
            case "bug":
                raise ZeroDivisionError("something unforeseen")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)


@dataclass(frozen=True)
class Sleep:
    """Tells its process and works for a long time."""

    folder: Path

    def __call__(self, job: Named, threads: int, report: Report) -> None:
        (self.folder / str(os.getpid())).touch()
        time.sleep(120)


def run(how: str, work: object, report: Report = lambda amount: None) -> None:
    if how == "here":
        run_here(work, JOBS, report, threads=2)  # type: ignore[arg-type]
    else:
        run_pool(work, JOBS, report, int(how), threads=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["here", "1", "2", "5", "40"])
def test_every_unit_is_done_once_and_counted(how: str, tmp_path: Path) -> None:
    amounts: list[Amount] = []
    run(how, Note(tmp_path), amounts.append)
    lines = [(tmp_path / job.name).read_text().splitlines() for job in JOBS]
    assert [len(found) for found in lines] == [1] * len(JOBS)
    assert sum(amounts, Amount()) == Amount(documents=12, tokens=120)
    pids = {found[0].split()[0] for found in lines}
    assert {found[0].split()[1] for found in lines} == {"2"}
    if how == "here":
        assert pids == {str(os.getpid())}
    else:
        assert str(os.getpid()) not in pids
        assert len(pids) <= min(int(how), len(JOBS))
        assert {found[0].split()[2] for found in lines} == {"False"}, "workers have no torch"


@pytest.mark.parametrize("how", ["here", "2"])
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("own", ConfigError, r"^a line for the user$"),
        ("disk", CannotWrite, r"^cannot write /data/shard: No space left on device$"),
        ("bug", DataError, r"^ZeroDivisionError while working on unit-3: something unforeseen$"),
    ],
)
def test_error_in_the_work_reaches_the_caller_as_one_line(
    how: str, failure: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        run(how, Fail(failure))
    assert re.search(message, str(caught.value))
    notes = getattr(caught.value, "__notes__", [])
    assert how == "here" or "Traceback" in notes[0], "for --debug"


@pytest.mark.parametrize(
    ("failure", "end"),
    [("kill", r"signal 9 \(SIGKILL\), perhaps for want of memory"), ("exit", "exit code 3")],
)
def test_worker_that_ends_is_named_with_its_unit(failure: str, end: str) -> None:
    message = rf"^a worker process ended with {end} while it worked on unit-3; finished work is kept"
    with pytest.raises(DataError, match=message):
        run("2", Fail(failure))


SCRIPT = """
import sys
from pathlib import Path
from tests.data.test_engine import JOBS, Note, Sleep
from perjoule.data.engine import run_pool

print("run", flush=True)
work = {"note": Note, "sleep": Sleep}[sys.argv[1]](Path(sys.argv[2]))
try:
    run_pool(work, JOBS, lambda amount: None, 2)
except KeyboardInterrupt:
    sys.exit(42)
"""


def script(tmp_path: Path, what: str) -> subprocess.Popen[str]:
    """Start a script without a main guard that runs a pool."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, path, what, folder], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_script_needs_no_main_guard(tmp_path: Path) -> None:
    output, _ = script(tmp_path, "note").communicate(timeout=60)
    assert output == "run\n", "once, not again in each worker"
    assert len(list((tmp_path / "out").iterdir())) == len(JOBS)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 42), (signal.SIGKILL, False, -signal.SIGKILL), (signal.SIGTERM, False, -signal.SIGTERM)],
)
def test_no_worker_outlives_its_parent(number: int, to_group: bool, code: int, tmp_path: Path) -> None:
    parent = script(tmp_path, "sleep")
    assert within(30, lambda: len(list((tmp_path / "out").iterdir())) == 2)
    workers = [int(path.name) for path in (tmp_path / "out").iterdir()]
    assert all(map(is_running, workers))
    (os.killpg if to_group else os.kill)(parent.pid, number)
    assert parent.wait(20) == code
    assert within(20, lambda: not any(map(is_running, workers)))
    assert parent.stdout is not None
    parent.stdout.close()


@pytest.fixture(scope="module")
def cluster() -> object:
    """A cluster of two processes on the loopback interface."""
    made = engine_dask.local_cluster(2, {"host": "127.0.0.1"})
    yield made
    made.close(timeout=20)


dask_test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def on_dask(
    work: Work, scheduler: str, options: dict[str, Any] | None = None, report: Report = lambda amount: None
) -> None:
    with Engine(EngineConfig(engine="dask", scheduler=scheduler, workers=2, cluster=options or {})) as engine:
        engine.run(work, JOBS, report)


@dask_test
def test_dask_does_every_unit_once_in_other_processes(cluster: object, tmp_path: Path) -> None:
    amounts: list[Amount] = []
    on_dask(Note(tmp_path), cluster.scheduler_address, report=amounts.append)  # type: ignore[attr-defined]
    assert amounts == [Amount(documents=1, tokens=10)] * len(JOBS)
    lines = [(tmp_path / job.name).read_text().splitlines() for job in JOBS]
    assert [len(found) for found in lines] == [1] * len(JOBS)
    assert str(os.getpid()) not in {found[0].split()[0] for found in lines}


@dask_test
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("own", ConfigError, r"^a line for the user$"),
        ("disk", CannotWrite, r"^cannot write /data/shard: No space left on device$"),
        ("bug", DataError, r"^ZeroDivisionError while working on unit-3: something unforeseen$"),
    ],
)
def test_error_in_a_dask_worker_reaches_the_caller_as_one_line(
    failure: str, kind: type[Exception], message: str, cluster: object
) -> None:
    with pytest.raises(kind, match=message):
        on_dask(Fail(failure), cluster.scheduler_address)  # type: ignore[attr-defined]


@dask_test
def test_workers_that_come_later_are_given_units_as_well(
    cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_dask.connected(cluster.scheduler_address, 2, {}) as client:  # type: ignore[attr-defined]
        submitted: list[str] = []
        given: list[int] = []
        submit = client.submit

        def count(do: Any, work: Work, job: Named, **options: Any) -> Any:
            submitted.append(job.name)
            return submit(do, work, job, **options)

        def threads() -> dict[str, int]:
            given.append(len(submitted))
            return {"first": 1} if len(given) == 1 else {"first": 1, "second": 3}

        monkeypatch.setattr(client, "submit", count)
        monkeypatch.setattr(client, "nthreads", threads)
        engine_dask.run_dask(client, Note(tmp_path), JOBS, lambda amount: None)
    assert given[:3] == [0, 3, 12]
    assert submitted == [job.name for job in JOBS]


@dask_test
def test_scheduler_that_is_not_there_says_what_would_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_dask, "_CONNECT_S", 0.5)
    message = r"cannot use the Dask scheduler tcp://127\.0\.0\.1:9: .*; accepted: an address such as tcp://host:8786"
    with pytest.raises(DataError, match=message):
        on_dask(Fail("own"), "tcp://127.0.0.1:9")


@dask_test
def test_cluster_without_workers_and_one_that_loses_them_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_dask, "_CONNECT_S", 2)
    with engine_dask.local_cluster(0, {"host": "127.0.0.1"}) as empty:
        with pytest.raises(DataError, match=r"the Dask scheduler tcp://.* has no workers; start some"):
            on_dask(Fail("own"), empty.scheduler_address)

    class Lost:
        def result(self) -> Amount:
            raise RuntimeError("attempted to run on 4 workers\nand more")

    with pytest.raises(DataError, match=r"^the Dask cluster failed: RuntimeError: attempted to run on 4 workers$"):
        engine_dask._result(Lost())


@dask_test
def test_slurm_job_script_has_the_options() -> None:
    options = {
        "queue": "long",
        "account": "lab",
        "cores": 8,
        "processes": 8,
        "memory": "16GB",
        "walltime": "01:30:00",
        "job_extra_directives": ["--exclusive"],
        "interface": "lo",
        "scheduler_options": {"dashboard_address": ":0"},
    }
    with slurm_cluster(options) as made:
        text = made.job_script()
    for line in ("#SBATCH -p long", "#SBATCH -A lab", "#SBATCH --cpus-per-task=8", "#SBATCH -t 01:30:00"):
        assert line in text
    assert "#SBATCH --exclusive" in text
    assert "distributed.cli.dask_worker" in text or "dask worker" in text


@dask_test
def test_wrong_option_of_a_cluster_is_one_line() -> None:
    with pytest.raises(
        DataError, match=r"cannot use the Dask scheduler slurm: .*(cores|memory).*; accepted: an address"
    ):
        on_dask(Fail("own"), "slurm", {"queue": "long"})


def test_missing_dask_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        MissingExtra, match=r"engine=dask needs distributed; install it with pip install 'perjoule\[dask\]'"
    ):
        on_dask(Fail("own"), "local")


def test_freed_memory_goes_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_bytes: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=kept_bytes.append))
    give_back_memory()
    assert kept_bytes == [0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_back_memory()
    assert kept_bytes == [0]


def test_a_library_that_takes_the_interrupt_for_itself_does_not_keep_it() -> None:
    program = (
        "import signal; from perjoule.data.engine_dask import _imported; before = signal.getsignal(signal.SIGINT); "
        "_imported('dask_jobqueue'); print(signal.getsignal(signal.SIGINT) is before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
