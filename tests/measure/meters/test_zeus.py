"""The adapter to Zeus, on a Zeus of our own with the names of the true one (0.16)."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Meter, Unavailable
from perjoule.measure.meters.zeus import ZeusConfig


class NoDeviceError(Exception):
    """What Zeus raises if it finds nothing."""


class AMDGPUs:
    """Two GPUs, of which the second has no counter."""

    energy_mj, power_mw = 5_000, 80_000

    def __len__(self) -> int:
        return 2

    def get_name(self, index: int) -> str:
        return f"Instinct {index}"

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return index == 0

    def get_total_energy_consumption(self, index: int) -> int:
        return self.energy_mj

    def get_instant_power_usage(self, index: int) -> int:
        if self.power_mw < 0:
            raise RuntimeError("amdsmi said no")
        return self.power_mw


class NoGPUs(AMDGPUs):
    """No GPU is visible."""

    def __len__(self) -> int:
        return 0


class NVIDIAGPUs(AMDGPUs):
    """Zeus's class of that name."""


class AppleSilicon:
    """A chip with parts that lie within others."""

    def get_available_metrics(self) -> set[str]:
        return {"cpu_total_mj", "efficiency_cores_mj", "dram_mj", "gpu_mj", "gpu_sram_mj"}

    def get_total_energy_consumption(self) -> SimpleNamespace:
        return SimpleNamespace(cpu_total_mj=11, efficiency_cores_mj=[1], dram_mj=3, gpu_mj=7, gpu_sram_mj=1)


class Jetson:
    """A board with a total."""

    def get_available_metrics(self) -> set[str]:
        return {"cpu_energy_mj", "gpu_energy_mj", "total_energy_mj"}

    def get_total_energy_consumption(self) -> SimpleNamespace:
        return SimpleNamespace(cpu_energy_mj=1.5, gpu_energy_mj=2.25, total_energy_mj=9.125)


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a module ``zeus`` in the place of the true one."""

    def get(found: object) -> Callable[[], object]:
        def get_() -> object:
            if found is None:
                raise NoDeviceError("nothing found")
            return found

        return get_

    def install_(gpus: object = None, soc: object = None) -> None:
        names: dict[str, dict[str, object]] = {
            "zeus": {},
            "zeus.device": {"get_gpus": get(gpus), "get_soc": get(soc)},
        }
        for name, attributes in names.items():
            module = ModuleType(name)
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, name, module)

    return install_


def meters(found: tuple[Meter | Unavailable, ...]) -> list[Meter]:
    assert all(not isinstance(each, Unavailable) for each in found), found
    return [each for each in found if not isinstance(each, Unavailable)]


def test_gpu_is_read_by_its_counter_and_by_its_power_where_it_has_none(install: Install, build: Build) -> None:
    install(AMDGPUs())
    counter, power = meters(build(ZeusConfig()))
    assert (counter.sensor.domain, counter.sensor.scope, counter.sensor.form) == ("gpu-0", "gpu", Form.COUNTER)
    assert (power.sensor.domain, power.sensor.device, power.sensor.form) == ("gpu-1", "gpu-1", Form.POWER)
    assert counter.sensor.method == "zeus: energy counter of GPU 0, Instinct 0"
    assert power.sensor.method == "zeus: power of GPU 1, Instinct 1"
    assert (counter.read(), counter.sensor.unit) == (5_000_000, "µJ")
    assert (power.read(), power.sensor.unit) == (80_000_000, "µW")


def test_reading_that_fails_is_unavailable(install: Install, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    install(AMDGPUs())
    _, power = meters(build(ZeusConfig()))
    monkeypatch.setattr(AMDGPUs, "power_mw", -1)
    assert power.read() == Unavailable("gpu-1: RuntimeError: amdsmi said no")


def test_chip_is_read_by_the_parts_that_do_not_lie_in_others(install: Install, build: Build) -> None:
    install(soc=AppleSilicon())
    found = {meter.sensor.domain: (meter.sensor.scope, meter.read()) for meter in meters(build(ZeusConfig()))}
    assert found == {"soc-cpu": ("package", 11_000), "soc-dram": ("dram", 3_000), "soc-gpu": ("gpu", 7_000)}


def test_board_with_a_total_is_a_module_of_one_device(install: Install, build: Build) -> None:
    install(soc=Jetson())
    found = meters(build(ZeusConfig()))
    assert {meter.sensor.domain: (meter.sensor.scope, meter.read()) for meter in found} == {
        "soc-cpu": ("package", 1_500),
        "soc-gpu": ("gpu", 2_250),
        "soc": ("module", 9_125),
    }
    assert {meter.sensor.device for meter in found} == {"soc"}


def test_nvidia_gpus_are_left_to_their_own_meter(install: Install, build: Build) -> None:
    install(NVIDIAGPUs())
    assert build(ZeusConfig())[0] == Unavailable("zeus shows NVIDIA GPUs only", "the meter `nvidia` reads them")


def test_machine_without_a_device_gives_the_words_of_zeus(install: Install, build: Build) -> None:
    install()
    assert build(ZeusConfig()) == (Unavailable("zeus: nothing found"), Unavailable("zeus: nothing found"))


def test_missing_package_names_the_extra(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    (missing,) = build(ZeusConfig())
    assert isinstance(missing, Unavailable)
    assert missing.reason.startswith("zeus cannot be imported: ")
    assert "pip install 'perjoule[zeus]'" in missing.remedy


def test_platform_with_an_empty_list_has_no_device(install: Install, build: Build) -> None:
    install(NoGPUs(), SimpleNamespace(get_available_metrics=set))
    assert build(ZeusConfig()) == (Unavailable("zeus shows no device"),)
