"""Times that are printed, with a clock that the test turns."""

from perjoule.measure.bridges.simple_stats import SimpleStats


class Bench:
    """Stats whose clock goes on by the milliseconds that a phase is said to take."""

    def __init__(self) -> None:
        self.now_ns, self.lines, self.num_fences = 0, list[str](), 0
        self.stats = SimpleStats(self._fence, self.lines.append, lambda: self.now_ns)

    def _fence(self) -> None:
        self.num_fences += 1

    def phase(self, name: str, milliseconds: float) -> None:
        getattr(self.stats, f"start_{name}")()
        self.now_ns += round(milliseconds * 1e6)
        getattr(self.stats, f"stop_{name}")()

    def step(self, factor: float = 1.0, log: bool = True) -> None:
        self.stats.start_step()
        self.phase("forward", 3 * factor)
        self.phase("backward", 5 * factor)
        self.phase("optimizer_step", 1 * factor)
        self.now_ns += round(1e6 * factor)
        self.stats.stop_step()
        if log:
            self.stats.log_loss(1.0)
            self.stats.log_step()


def test_a_step_is_a_line_in_milliseconds() -> None:
    bench = Bench()
    bench.step()
    assert bench.lines == ["step 10.000 -- forward 3.000 -- backward 5.000 -- optimizer step 1.000"]


def test_the_device_is_waited_for_at_every_edge() -> None:
    bench = Bench()
    bench.step()
    assert bench.num_fences == 8


def test_the_end_shows_means_and_nearest_quantiles() -> None:
    bench = Bench()
    for number in range(1, 101):
        bench.step(number)
    bench.lines.clear()
    bench.stats.log_stats()
    assert bench.lines[0] == "mean of 100 steps, ms"
    assert bench.lines[1] == "step 505.000 -- forward 151.500 -- backward 252.500 -- optimizer step 50.500"
    assert bench.lines[2].split() == "quantile, ms step forward backward optimizer step".split()
    table = {line.split()[0]: line.split()[1:] for line in bench.lines[3:]}
    assert list(table) == ["0.001", "0.01", "0.1", "0.25", "0.5", "0.75", "0.9", "0.99", "0.999"]
    assert table["0.1"] == ["110.000", "33.000", "55.000", "11.000"], "a step that was, not a value between two"
    assert table["0.999"] == ["1000.000", "300.000", "500.000", "100.000"]


def test_micro_batches_are_one_figure_and_a_checkpoint_is_not_in_the_step() -> None:
    bench = Bench()
    bench.stats.start_step()
    bench.phase("forward", 3)
    bench.phase("forward", 4)
    bench.stats.stop_step()
    bench.phase("save_checkpoint", 50)
    bench.stats.log_step()
    assert bench.lines == ["step 7.000 -- forward 7.000 -- backward 0.000 -- optimizer step 0.000"]
    assert list(bench.stats.spent_ns["save_checkpoint"]) == [50_000_000]
    bench.stats.log_stats()
    assert bench.lines[2] == "step 7.000 -- forward 7.000 -- save checkpoint 50.000"


def test_a_log_that_comes_one_step_late_shows_its_own_step() -> None:
    bench = Bench()
    bench.step(1, log=False)
    bench.step(2, log=False)
    bench.stats.log_step()
    assert bench.lines == ["step 10.000 -- forward 3.000 -- backward 5.000 -- optimizer step 1.000"]


def test_no_step_is_said() -> None:
    bench = Bench()
    bench.stats.log_stats()
    assert bench.lines == ["no step was taken"]


def test_a_hook_that_ends_what_never_began_adds_nothing() -> None:
    bench = Bench()
    for hook in ("stop_forward", "stop_step", "stop_save_checkpoint", "log_step"):
        getattr(bench.stats, hook)()
    bench.step()
    bench.stats.stop_step()
    bench.stats.log_stats()
    assert bench.lines[0] == "step 10.000 -- forward 3.000 -- backward 5.000 -- optimizer step 1.000"
    assert bench.lines[1] == "mean of 1 steps, ms" and "save checkpoint" not in bench.lines[2]
