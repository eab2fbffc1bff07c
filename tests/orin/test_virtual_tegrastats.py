"""The virtual board's tegrastats: rails file, sensor, lines, and the process as `power.Tegrastats` sees it."""

import math
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from orin.errors import OrinError
from orin.virtual import tegrastats
from orin.virtual.rails import RailsFile, RailsState
from power.boards import AGX_ORIN_64GB
from power.errors import PowerError
from power.meter import Meter
from power.reading import GpuLoad, Load, Ram, Swap, parse_line
from power.tegrastats import Tegrastats

SECOND = 1_000_000_000
TAU_S = 0.43008


def state(at_ns=0, watts=(0.0, 0.0, 0.0, 0.0), **changes):
    """A board that has drawn constant power since time 0, with half-busy GPU and DLA1 at full clocks."""
    values = {
        "monotonic_ns": at_ns,
        "energy_mj": tuple(power * at_ns / 1e6 for power in watts),
        "gpu_busy_ns": at_ns // 2,
        "dla0_busy_ns": 0,
        "dla1_busy_ns": at_ns // 2,
        "dram_bytes": at_ns * 51.184 // 1,  # a quarter of 64 bytes x 3199 MHz, per ns
        "gpu_mhz": 1300.5,
        "dla_mhz": 1600.0,
        "emc_mhz": 3199.0,
        "cpu_mhz": 2201.6,
    }
    return RailsState(**{**values, "dram_bytes": int(values["dram_bytes"]), **changes})


def command(path, interval_ms=20):
    return [sys.executable, "-m", "orin.virtual.tegrastats", "--rails", str(path), "--interval", str(interval_ms)]


@contextmanager
def board(path, watts):
    """Publish constant power every 5 ms until the block ends, then stop."""
    rails, over = RailsFile.create(path), threading.Event()
    begin_ns = time.monotonic_ns()

    def publish():
        while not over.wait(0.005):
            now_ns = time.monotonic_ns()
            rails.publish(state(now_ns - begin_ns, watts, monotonic_ns=now_ns))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield rails
    finally:
        over.set()
        thread.join()
        rails.publish(state(stopped=True))
        rails.close()


def test_a_state_comes_back_as_it_was_published(tmp_path):
    writer = RailsFile.create(tmp_path / "rails")
    reader = RailsFile.open(tmp_path / "rails")
    assert reader.read().energy_mj == (0.0, 0.0, 0.0, 0.0) and not reader.read().stopped
    for published in (state(5 * SECOND, (1.5, 2.5, 3.5, 4.5)), state(6 * SECOND, stopped=True)):
        writer.publish(published)
        assert reader.read() == published
    reader.close()
    writer.close()


def test_a_reader_never_sees_half_a_state(tmp_path):
    path, enough = tmp_path / "rails", tmp_path / "enough"
    script = f"""
from pathlib import Path
from orin.virtual.rails import RailsFile, RailsState
rails, n = RailsFile.create(Path({str(path)!r})), 0
print("ready", flush=True)
while not Path({str(enough)!r}).exists():
    n += 1
    rails.publish(RailsState(n, (float(n),) * 4, n, n, n, n, float(n), float(n), float(n), float(n)))
"""
    seen = set()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        reader = RailsFile.open(path)
        while writer.poll() is None and len(seen) < 500:
            now = reader.read()
            if now.cpu_mhz:
                values = {*now.energy_mj, now.gpu_busy_ns, now.dla0_busy_ns, now.dram_bytes, now.gpu_mhz, now.cpu_mhz}
                assert values == {now.monotonic_ns}
                seen.add(now.monotonic_ns)
        enough.touch()
    assert writer.returncode == 0 and len(seen) == 500


def test_a_state_whose_writer_died_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("orin.virtual.rails._PATIENCE_S", 0.05)
    path = tmp_path / "rails"
    RailsFile.create(path).close()
    content = bytearray(path.read_bytes())
    content[8] |= 1  # the sequence counter says that a write has begun
    path.write_bytes(content)
    with pytest.raises(OrinError, match="half-written"):
        RailsFile.open(path).read()


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(OrinError, match="is the virtual board running"):
        RailsFile.open(tmp_path / "missing")
    for content in (b"", b"x" * 500):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(OrinError, match="rails file"):
            RailsFile.open(tmp_path / "other")


def test_the_sensor_follows_a_step_as_the_closed_form_says():
    sensor = tegrastats.Sensor(AGX_ORIN_64GB)
    energy_mj, at_ns = 0.0, 0
    sensor.feed(state(0))
    assert sensor.rails_mw() is None
    for index in range(1, 200):
        watts = 7.0 if index <= 100 else 27.0  # the step is at 1 s
        energy_mj += watts * 10
        at_ns = index * 10_000_000
        sensor.feed(state(at_ns, energy_mj=(0.0, 0.0, energy_mj, 0.0)))
        shown_w = sensor.rails_mw()["VIN_SYS_5V0"] / 1000
        true_w = 7.0 if index <= 100 else 27 - 20 * math.exp(-(at_ns / 1e9 - 1) / TAU_S)
        assert shown_w == pytest.approx(true_w, abs=0.0501)  # half a step of 20 mA at 5 V
    assert at_ns == 1_990_000_000


def test_the_sensor_shows_whole_steps_and_holds_between_states():
    sensor = tegrastats.Sensor(AGX_ORIN_64GB)
    for at_ns in (0, SECOND, SECOND):
        sensor.feed(state(at_ns, (3.0, 0.55, 4.98, -0.2)))
    assert sensor.rails_mw() == {
        "VDD_GPU_SOC": 3184,  # 8 steps of 398 mW
        "VDD_CPU_CV": 398,
        "VIN_SYS_5V0": 5000,
        "VDDQ_VDD2_1V8AO": -200,
    }


def test_the_second_number_is_the_mean_of_all_shown():
    averages = tegrastats.Averages()
    assert averages.rails({"A": 10}) == "A 10mW/10mW"
    assert averages.rails({"A": 15}) == "A 15mW/12mW"
    assert averages.rails({"A": 30}) == "A 30mW/18mW"


def test_loads_are_those_since_the_line_before_and_idle_dlas_are_not_named():
    line = tegrastats.engines(state(SECOND), state(3 * SECOND))
    assert line == "EMC_FREQ 25%@3199 GR3D_FREQ 50%@[1300,1300] NVDLA1_FREQ @1600"
    assert tegrastats.engines(state(), state()) == "EMC_FREQ 0%@3199 GR3D_FREQ 0%@[1300,1300]"


def test_memory_and_cpu_loads_are_the_machines_own(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 20480 kB\nMemAvailable: 10240 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    (tmp_path / "buddyinfo").write_text("Node 0, zone Normal 1 2 0\nNode 0, zone DMA 5 3 0\n")
    (tmp_path / "stat").write_text("cpu 9 9 9 9 9 0 0 0\ncpu0 10 0 0 90 0 0 0 0\ncpu1 0 0 0 50 50 0 0 0\nintr 5\n")
    host = tegrastats.Host(tmp_path)
    (tmp_path / "stat").write_text("cpu0 20 5 0 150 0 0 0 0\ncpu1 0 0 0 80 120 0 0 0\nintr 6\n")
    reading = parse_line(f"{host.memory()} {host.cpus(2201.6)}")
    assert reading.ram == Ram(10, 20, 5, "8kB") and reading.swap == Swap(0, 0, 0)
    assert reading.cpus == (Load(20, 2202), Load(0, 2202)) + (None,) * 10


def test_a_board_that_publishes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tegrastats, "_NO_BOARD_S", 0.05)
    with pytest.raises(OrinError, match="is the board running"):
        tegrastats.run(RailsFile.create(tmp_path / "rails"), 0.02)


def test_end_to_end_power_is_right_within_a_step_of_the_sensor(tmp_path):
    watts = (20.0, 8.1, 6.02, 2.0)
    with board(tmp_path / "rails", watts), Tegrastats(command(tmp_path / "rails", 50), silence_s=60) as source:
        while len(source.readings()) < 10:
            source.check()
            time.sleep(0.05)
        samples = Meter(AGX_ORIN_64GB, source).samples
    for rail, true_w in zip(AGX_ORIN_64GB.rails, watts, strict=True):
        assert all(abs(sample.rails_mw[rail.name] / 1e3 - true_w) <= rail.step_w for sample in samples)
    assert len(samples) >= 10 and source.garbled == 0
    reading = source.readings()[-1][1]
    assert reading.unknown == () and reading.ram is not None and reading.timestamp is not None
    assert len(reading.cpus) == 12 and set(reading.temperatures_c.values()) == {None}
    assert reading.gpu.mhz == (1300, 1300) and isinstance(reading.gpu, GpuLoad)
    assert reading.engines == {"NVDLA1": Load(None, 1600)}


def test_the_program_ends_when_the_board_has_stopped(tmp_path):
    with board(tmp_path / "rails", (1.0, 1.0, 1.0, 1.0)):
        child = subprocess.Popen(command(tmp_path / "rails"), stdout=subprocess.PIPE, text=True)
        assert parse_line(child.stdout.readline()) is not None
    assert child.wait(60) == 0
    child.stdout.close()


def test_the_program_ends_when_nobody_reads_any_more(tmp_path):
    with board(tmp_path / "rails", (1.0, 1.0, 1.0, 1.0)):
        child = subprocess.Popen(command(tmp_path / "rails"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(60) != 0
        child.stderr.close()


def test_a_missing_rails_file_reaches_the_user_in_one_line(tmp_path):
    with pytest.raises(
        PowerError, match=r"ended by itself with exit code 2: tegrastats: rails file .*cannot be opened"
    ):
        Tegrastats(command(tmp_path / "missing")).start()
