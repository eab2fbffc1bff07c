"""Rails from a made-up /sys, the sampling thread on a clock of the test's own, and jtop's service in replicas."""

import errno
import os
import sys
import threading
import time
import types

import pytest

from power.boards import AGX_ORIN_64GB
from power.errors import PowerError
from power.hwmon import HwmonRails, chip_filters, find_rails
from power.jtop import JtopRails
from power.meter import Meter
from power.reading import RailReading, Reading, Temperature, parse_line
from power.sampler import SILENCE_S, Sampler
from power.source import ChipFilter
from power.sources import running_source, this_board

SECOND = 1_000_000_000
DRIVERS = "sys/bus/i2c/drivers"


def chip(root, address, hwmon, rails, driver="ina3221", **settings):
    """Lay out one chip: `rails` are (label, millivolt, milliampere[, enable]) by channel."""
    folder = root / DRIVERS / driver / address / "hwmon" / hwmon
    folder.mkdir(parents=True)
    for channel, (label, millivolt, milliampere, *enable) in enumerate(rails, 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolt}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliampere}\n")
        (folder / f"in{channel}_enable").write_text(f"{enable[0] if enable else 1}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    for name, value in settings.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def orin(tmp_path):
    first = [("VDD_GPU_SOC", 19864, 180), ("VDD_CPU_CV", 19880, -20), ("VIN_SYS_5V0", 5008, 940)]
    second = [("NC", 0, 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 60), ("NC", 0, 0, 0)]
    chip(tmp_path, "1-0041", "hwmon1", second, samples=512, update_interval=1)
    chip(tmp_path, "1-0040", "hwmon5", first, samples=512, update_interval=1)
    return tmp_path


def test_power_is_voltage_times_current_by_label(orin):
    rails = HwmonRails(orin)
    rails.open()
    shown = {name: rail.now_mw for name, rail in rails.read().rails.items()}
    # 19.864 V x 0.18 A = 3.57552 W, 19.88 V x -0.02 A = -0.3976 W, 5.008 V x 0.94 A = 4.70752 W, 5 V x 0.06 A = 0.3 W
    assert shown == {"VDD_GPU_SOC": 3576, "VDD_CPU_CV": -398, "VIN_SYS_5V0": 4708, "VDDQ_VDD2_1V8AO": 300}
    assert [(rail.name, rail.chip) for rail in find_rails(orin)][-1] == ("VDDQ_VDD2_1V8AO", "1-0041")
    assert all(rail.average_mw is None and rail.peak_mw is None for rail in rails.read().rails.values())


def test_modules_with_one_chip_and_thor_s_input(tmp_path):
    chip(
        tmp_path / "nano", "1-0040", "hwmon3", [("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 8), ("VDD_SOC", 5, 8)]
    )
    assert [rail.name for rail in find_rails(tmp_path / "nano")] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    chip(tmp_path / "thor", "2-0044", "hwmon7", [], driver="ina238", power1_input=124_500_000)
    (rail,) = find_rails(tmp_path / "thor")
    assert (rail.name, rail.read_mw()) == ("VIN", 124_500)


@pytest.mark.parametrize(
    "samples,interval_ms,channels,tau_s",
    [
        (512, 1, 3, 0.43008),  # the interval of one cycle, 3 x 0.28 ms, in whole ms
        (512, 430, 3, 0.430),  # of all samples: kernels before 5.14
        (512, 0, 1, 0.14336),  # one channel: 0.28 ms reads as 0
        (64, 13, 3, 0.832),  # longer conversions, 3 x (4.156 + 0.14) ms = 12.9 ms
        (1, 1, 3, 0.00084),  # no averaging: one cycle
    ],
)
def test_the_time_constant_follows_from_the_chip_s_settings(samples, interval_ms, channels, tau_s):
    assert ChipFilter("1-0040", samples, interval_ms, channels).tau_s == pytest.approx(tau_s, rel=1e-9)


def test_settings_are_read_with_the_channels_that_are_on(orin):
    filters = chip_filters(orin)
    assert filters["VDD_GPU_SOC"] == ChipFilter("1-0040", 512, 1.0, 3)
    assert filters["VDDQ_VDD2_1V8AO"] == ChipFilter("1-0041", 512, 1.0, 1)
    (orin / DRIVERS / "ina3221/1-0041/hwmon/hwmon1/samples").unlink()
    assert set(chip_filters(orin)) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}


def test_a_machine_without_rails_says_so(tmp_path):
    with pytest.raises(PowerError, match="no labelled power rail under .*: this machine is no Jetson"):
        HwmonRails(tmp_path).open()


class StepClock:
    """Time that passes when a sampler waits for it, and when the test says so; stops the sampler after `steps`."""

    def __init__(self, steps=10**9):
        self.ns, self.steps = 0, steps

    def now_ns(self):
        return self.ns

    def wait(self, over, seconds):
        if self.steps <= 0:
            return over.wait(60)
        self.steps -= 1
        self.ns += round(seconds * SECOND)
        return over.is_set()


class Fixed:
    """A sensor that shows what the test says, one after another; an exception is raised."""

    name = "fixed"
    filters = {"VDD_GPU_SOC": ChipFilter("1-0040", 512, 1.0, 3)}

    def __init__(self, *shown):
        self.shown, self.at, self.is_open = shown, 0, False

    def open(self):
        self.is_open = True

    def read(self):
        value = self.shown[min(self.at, len(self.shown) - 1)]
        self.at += 1
        if isinstance(value, Exception):
            raise value
        return Reading(
            {}, {"cpu": Temperature(50.5, None), "gpu": None}, {"VDD_GPU_SOC": RailReading(value, None, None)}
        )

    def close(self):
        self.is_open = False


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_readings_come_at_the_interval_and_the_sensor_is_closed():
    sensor, lines = Fixed(1000, 2000, 3000), []
    with Sampler(sensor, 250, lambda at_ns, line: lines.append((at_ns, line)), StepClock(steps=3)) as source:
        wait_for(lambda: len(source.readings()) == 4)
        source.check()
    assert [at_ns for at_ns, _ in source.readings()] == [0, SECOND // 4, SECOND // 2, 3 * SECOND // 4]
    assert [reading.rails["VDD_GPU_SOC"].now_mw for _, reading in source.readings()] == [1000, 2000, 3000, 3000]
    assert source.filters == Fixed.filters and not sensor.is_open and source.failure() is None
    reading = parse_line(lines[1][1])  # what a record keeps is what tegrastats would have printed
    assert reading.rails == source.readings()[1][1].rails and reading.unknown == ()
    assert reading.temperatures_c == source.readings()[1][1].temperatures_c


def test_a_sensor_that_fails_is_seen_early_and_raised_at_the_end():
    with (
        pytest.raises(PowerError, match="^bus has gone$"),
        Sampler(Fixed(1, 2, PowerError("bus has gone")), 1) as source,
    ):
        wait_for(lambda: source.failure() is not None)
        assert len(source.readings()) == 2
        with pytest.raises(PowerError, match="bus has gone"):
            Meter(AGX_ORIN_64GB, source).energy(0, SECOND)


def test_the_error_of_the_body_is_not_hidden_by_the_sensor_s():
    with pytest.raises(ZeroDivisionError), Sampler(Fixed(1, PowerError("gone")), 1) as source:
        wait_for(lambda: source.failure() is not None)
        1 / 0  # noqa: B018


def test_an_error_of_the_line_callback_reaches_the_caller():
    def full_disk(at_ns, line):
        if at_ns:
            raise OSError(28, "No space left on device")

    with pytest.raises(PowerError, match="fixed: its readings cannot be taken: .*No space left on device"):
        with Sampler(Fixed(1), 1, full_disk, StepClock()) as source:
            wait_for(lambda: source.failure() is not None)


def test_a_sensor_that_hangs_is_a_failure():
    asked, answered, clock = threading.Event(), threading.Event(), StepClock(steps=1)

    class Hung(Fixed):
        def read(self):
            if self.at:
                asked.set()
                answered.wait(60)
            return super().read()

    source = Sampler(Hung(1), 100, clock=clock)
    source.start()
    assert asked.wait(60) and source.failure() is None
    clock.ns += round((SILENCE_S + 1) * SECOND)
    assert "fixed has not answered for 6.0 s" in source.failure()
    answered.set()
    with pytest.raises(PowerError, match="has not answered"):
        source.stop()


def test_a_sensor_that_cannot_be_read_at_all_is_closed_again():
    sensor = Fixed(PowerError("no rights"))
    with pytest.raises(PowerError, match="no rights"):
        Sampler(sensor).start()
    assert not sensor.is_open
    with pytest.raises(PowerError, match="interval of 0 ms"):
        Sampler(sensor, 0)


def test_a_rail_that_disappears_mid_run_is_named(orin):
    gone = orin / DRIVERS / "ina3221/1-0040/hwmon/hwmon5/curr2_input"
    with pytest.raises(PowerError, match="rail VDD_CPU_CV: .*curr2_input cannot be read: No such file"):
        with Sampler(HwmonRails(orin), 1) as source:
            gone.unlink()
            wait_for(lambda: source.failure() is not None)


@pytest.mark.parametrize(
    "number,message",
    [
        (errno.EIO, "cannot be read: Input/output error; the sensor or its bus has gone, see dmesg"),
        (errno.EPERM, "cannot be read: Operation not permitted; read it as root, or through tegrastats"),
    ],
)
def test_a_bus_that_fails_and_rights_that_are_lost_are_told_apart(orin, monkeypatch, number, message):
    def refuse(descriptor, count):
        raise OSError(number, os.strerror(number))

    rails = HwmonRails(orin)
    rails.open()
    monkeypatch.setattr("power.hwmon.os.read", refuse)
    with pytest.raises(PowerError, match=f"rail VDD_GPU_SOC: .*in1_input {message}"):
        rails.read()


def test_a_file_that_holds_no_number_is_refused(orin):
    (orin / DRIVERS / "ina3221/1-0040/hwmon/hwmon5/in1_input").write_text("broken\n")
    with pytest.raises(PowerError, match="rail VDD_GPU_SOC: .* holds no whole number"):
        HwmonRails(orin).open() or Sampler(HwmonRails(orin)).start()


def test_the_board_is_known_by_its_module_number(orin):
    assert this_board(orin) is None
    (orin / "proc/device-tree").mkdir(parents=True)
    (orin / "proc/device-tree/compatible").write_bytes(
        b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"
    )
    assert this_board(orin) is AGX_ORIN_64GB


def test_auto_takes_the_first_source_that_shows_rails(orin, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no tegrastats
    with running_source("auto", 10, orin) as source:
        assert source.name.startswith("hwmon under") and source.filters["VDD_GPU_SOC"].samples == 512
    script = tmp_path / "tegrastats"  # JetPack 5 shows rails to root alone
    script.write_text(f'#!{sys.executable} -S\nimport time\nprint("RAM 1/2MB", flush=True)\ntime.sleep(60)\n')
    script.chmod(0o755)
    with running_source("auto", 10, orin) as source:
        assert source.name.startswith("hwmon under")
    with running_source("tegrastats", 10, orin) as source:
        assert source.name == "tegrastats --interval 10"
    with pytest.raises(PowerError, match="shows no power rail .*; no labelled power rail .*; jtop is not here"):
        with running_source("auto", 10, tmp_path / "nowhere"):
            pass
    with pytest.raises(PowerError, match="power source is 'ina', expected auto, tegrastats, hwmon, jtop"):
        with running_source("ina"):
            pass


class JtopException(Exception):
    pass


def install_jtop(monkeypatch, **behaviour):
    """Put a replica of jetson-stats' client in place; `start` and `ok` are what a test says, or raise it."""

    class Client:
        power = {
            "rail": {"VDD_GPU_SOC": {"power": 3575, "avg": 9999, "volt": 19864, "curr": 180}, "NC": {"online": False}},
            "tot": {"power": 9999, "avg": 9999},
        }
        temperature = {"cpu": {"temp": 52.9, "online": True}, "cv0": {"temp": -256.0, "online": False}}

        def __init__(self, interval):
            self.closed = False
            clients.append(self)

        def start(self):
            if "start" in behaviour:
                raise behaviour["start"]

        def ok(self):
            if isinstance(behaviour.get("ok"), Exception):
                raise behaviour["ok"]
            return behaviour.get("ok", True)

        def close(self):
            self.closed = True

    clients = []
    module = types.ModuleType("jtop")
    module.jtop, module.JtopException = Client, JtopException
    monkeypatch.setitem(sys.modules, "jtop", module)
    return clients


def test_jtop_gives_present_values_and_never_its_averages(monkeypatch):
    clients = install_jtop(monkeypatch)
    with Sampler(JtopRails(), clock=StepClock(steps=0)) as source:
        (_, reading), *_ = source.readings()
    assert reading.rails == {"VDD_GPU_SOC": RailReading(3575, None, None)}
    assert reading.temperatures_c == {"cpu": Temperature(52.9, None), "cv0": None}
    assert clients[0].closed


@pytest.mark.parametrize(
    "reason,line",
    [
        (
            "The jtop.service is not active. Please run:\nsudo jtop --install-service",
            "not active. Please run: sudo jtop",
        ),
        (
            "Mismatch version jtop service: [7.1] and client: [7.2]. Please run:\n\nsudo",
            "Mismatch version jtop service",
        ),
        (
            "I can't access jtop.service.\nPlease logout or reboot this board.",
            "I can't access jtop.service. Please logout",
        ),
    ],
)
def test_jtop_s_service_refuses_in_one_line(monkeypatch, reason, line):
    install_jtop(monkeypatch, start=JtopException(reason))
    with pytest.raises(PowerError, match="jtop's service cannot be used: ") as caught:
        Sampler(JtopRails()).start()
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ok", [False, JtopException("Lost connection with jtop server"), EOFError()])
def test_jtop_s_service_that_ends_is_a_failure(monkeypatch, ok):
    install_jtop(monkeypatch, ok=ok)
    with pytest.raises(PowerError, match="jtop's service (sent nothing|has ended: (Lost connection|EOFError))"):
        Sampler(JtopRails()).start()


def test_jtop_that_is_not_installed_says_what_else_to_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(PowerError, match="jtop is not here: install jetson-stats .* or read hwmon"):
        JtopRails().open()
