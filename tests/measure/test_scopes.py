"""No joule is added up twice."""

from itertools import permutations

import pytest

from perjoule.measure.contract import Form, Sensor
from perjoule.measure.scopes import outermost


def sensor(domain: str, scope: str, form: Form = Form.COUNTER, **facts: object) -> Sensor:
    known = {"method": "test", "unit": "µJ", "resolution_s": 0.01, **facts}
    return Sensor(domain=domain, form=form, scope=scope, **known)  # type: ignore[arg-type]


GPU = sensor("gpu-a", "gpu", device="a")
OTHER_GPU = sensor("gpu-b", "gpu", device="b")
PACKAGE = sensor("package-0", "package")
PACKAGE_1 = sensor("package-1", "package")
DRAM = sensor("dram-0", "dram")
CPU = sensor("cpu", "process", modelled=True)
RAM = sensor("ram", "ram", modelled=True)
PSYS = sensor("psys", "psys")
NODE = sensor("node", "node", Form.POWER)
MODULE = sensor("module-a", "module", device="a")
MIG = sensor("mig-a", "mig", device="a")
RAIL = sensor("hwmon-board-soc", "board", Form.POWER)


def domains(*sensors: Sensor) -> list[str]:
    return [one.domain for one in outermost(sensors)]


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ((GPU, PACKAGE, PACKAGE_1, DRAM, CPU, RAM), [GPU, PACKAGE, PACKAGE_1, DRAM]),
        ((CPU, RAM), [CPU, RAM]),
        ((DRAM, CPU, RAM), [DRAM, CPU]),
        ((PACKAGE, RAM), [PACKAGE, RAM]),
        ((PSYS, PACKAGE, DRAM, CPU, RAM, GPU), [PSYS, GPU]),
        ((MODULE, GPU, OTHER_GPU, PACKAGE, CPU), [MODULE, OTHER_GPU]),
        ((MIG, GPU, OTHER_GPU), [GPU, OTHER_GPU]),
        ((MIG, OTHER_GPU), [MIG, OTHER_GPU]),
        ((NODE, PSYS, MODULE, GPU, OTHER_GPU, PACKAGE, DRAM, CPU, RAM, RAIL), [NODE]),
        ((RAIL, CPU), [CPU]),
        ((RAIL, sensor("hwmon-board-io", "board")), [RAIL, sensor("hwmon-board-io", "board")]),
        ((), []),
    ],
)
def test_only_what_is_part_of_nothing_else_counts(given: tuple[Sensor, ...], counted: list[Sensor]) -> None:
    assert list(outermost(given)) == counted


def test_order_of_the_sensors_does_not_matter() -> None:
    given = (MODULE, GPU, OTHER_GPU, PACKAGE, CPU)
    assert {frozenset(domains(*one)) for one in permutations(given)} == {frozenset({"module-a", "gpu-b"})}


def test_gpus_without_a_device_are_matched_by_their_domain() -> None:
    assert domains(sensor("module-a", "module"), sensor("gpu-a", "gpu"), sensor("gpu-b", "gpu")) == [
        "module-a",
        "gpu-b",
    ]


def test_a_counter_stands_for_its_domain_rather_than_a_power_sensor() -> None:
    instant = sensor("gpu-a", "gpu", Form.POWER, window_s=0.025)
    average = sensor("gpu-a", "gpu", Form.POWER, window_s=1.0)
    unknown = sensor("gpu-a", "gpu", Form.POWER)
    for given in permutations((instant, GPU, average, unknown)):
        assert outermost(given) == (GPU,)
    assert outermost((unknown, average, instant)) == (instant,)


def test_a_modelled_node_does_not_stand_in_for_a_measured_part() -> None:
    modelled = sensor("node", "node", modelled=True)
    assert domains(modelled, GPU, CPU) == ["gpu-a"]
    assert domains(modelled, CPU) == ["node"]


def test_levels_are_no_energy() -> None:
    assert domains(sensor("memory-7", "process", Form.LEVEL), sensor("monitor", "process", Form.LEVEL), CPU) == ["cpu"]
