import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.ledgers import ledger
from tests.runs.synthetic import finished_run

from perjoule.core.errors import ConfigError, RunFolderError
from perjoule.report import build


def console() -> Console:
    return Console(file=io.StringIO(), width=100, color_system=None)


def test_one_run_is_reported_into_its_folder(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a")
    screen = console()
    assert build([path], console=screen) == (path / "report.html", path / "report.md")
    assert (path / "report.html").read_text().startswith("<!doctype html>")
    assert (path / "report.md").read_text().startswith("# a\n")
    assert isinstance(screen.file, io.StringIO) and "Tokens per second" in screen.file.getvalue()


def test_one_run_is_reported_into_a_given_file(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a")
    assert build([path], tmp_path / "x.html", console()) == (tmp_path / "x.html", tmp_path / "x.md")
    assert not (path / "report.html").exists()


def test_the_energy_of_a_metered_run_is_written_as_tables_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.measure.book.build_ledger", lambda run: ledger())
    path, screen = finished_run(tmp_path / "a"), console()
    names = ("report.html", "report.md", "emissions.csv", "emissions_steps.csv", "emissions_phases.csv", "energy.csv")
    assert build([path], console=screen) == tuple(path / name for name in names)
    assert "gpu-0,gpu,yes,forward,250.000000," in (path / "energy.csv").read_text()
    assert isinstance(screen.file, io.StringIO) and "1.1 kJ partly modelled" in screen.file.getvalue()
    assert "1.1 kJ" in (path / "report.html").read_text() and "1.1 kJ" in (path / "report.md").read_text()
    (path / "energy.csv").unlink()
    assert len(build([path], tmp_path / "x.html", console())) == 2
    assert not (path / "energy.csv").exists()


def test_several_runs_are_compared_in_a_given_file(tmp_path: Path) -> None:
    paths = [finished_run(tmp_path / name) for name in "ab"]
    assert build(paths, tmp_path / "x.html", console()) == (tmp_path / "x.html", tmp_path / "x.md")
    assert "Loss by tokens" in (tmp_path / "x.html").read_text()
    assert (tmp_path / "x.md").read_text().startswith("# Comparison\n")


def test_several_runs_without_a_file_are_only_printed(tmp_path: Path) -> None:
    paths = [finished_run(tmp_path / name) for name in "ab"]
    screen = console()
    assert build(paths, console=screen) == ()
    assert isinstance(screen.file, io.StringIO) and "Perplexity" in screen.file.getvalue()


def test_building_twice_gives_the_same_page(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a")
    build([path], console=console())
    first = (path / "report.html").read_bytes()
    build([path], console=console())
    assert (path / "report.html").read_bytes() == first


def test_what_cannot_be_reported_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report needs at least one run folder: perjoule report RUN"):
        build([])
    with pytest.raises(ConfigError, match=r"the report's output .*x\.pdf must end in \.html"):
        build([tmp_path], tmp_path / "x.pdf")
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no manifest\.json"):
        build([tmp_path])
    path = finished_run(tmp_path / "a")
    with pytest.raises(RunFolderError, match=r"cannot write /proc/perjoule/x\.html: No such file"):
        build([path], Path("/proc/perjoule/x.html"), console())


def test_a_report_is_built_without_torch(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; import perjoule.report\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules), 'the room is not light'\n"
        "perjoule.report.build([Path(sys.argv[1])]); assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert (path / "report.html").exists()
