"""`orin power watch`: running energy worked by hand, the view, and the command on made-up and virtual boards."""

import argparse
import io
import json
import sys

import pytest
from rich.console import Console

from orin.cli import power_watch
from orin.cli.errors import one_line
from orin.errors import OrinError
from orin.watch import Request, Watched, watch
from power.boards import AGX_ORIN_64GB
from power.errors import PowerError
from power.reading import parse_line
from power.running import RunningEnergy
from tests.power.test_hwmon import chip

SECOND = 1_000_000_000
VIRTUAL = "virtual:agx-orin-64gb"


def line(gpu_mw, cpu_mw=400, sys_mw=4000, more=""):
    rails = f"VDD_GPU_SOC {gpu_mw}mW/1mW VDD_CPU_CV {cpu_mw}mW/1mW VIN_SYS_5V0 {sys_mw}mW/1mW"
    head = "RAM 1/2MB CPU [10%@2201,30%@2201,off] EMC_FREQ 5%@3199 GR3D_FREQ 40%@[1300,1300] NVDLA0_FREQ @1600"
    return f"{head} cpu@52.9C gpu@-256C {rails}{more}"


class Lines:
    """A source that shows lines half a second apart."""

    name = "lines"
    filters = {}

    def __init__(self, *lines):
        self.lines = lines

    def readings(self):
        return [(at * SECOND // 2, parse_line(line)) for at, line in enumerate(self.lines)]

    def check(self):
        pass


def run(capsys, *words):
    """Run the command as the door does; return its exit code, what it printed and what it said."""
    parser = argparse.ArgumentParser()
    power_watch.configure(parser)
    options = parser.parse_args(words)
    try:
        code = options.handler(options)
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        code = 2
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_energy_since_the_start_worked_by_hand():
    source = Lines(line(1000), line(3000), line(3000))
    energy = RunningEnergy(AGX_ORIN_64GB)
    energy.take(source.readings()[:2])
    assert energy.rails["VDD_GPU_SOC"].joules == pytest.approx((1 + 3) / 2 * 0.5)
    energy.take(source.readings())  # what was taken before is not taken again
    assert energy.rails["VDD_GPU_SOC"].joules == pytest.approx(1 + 1.5)
    assert energy.module.joules == pytest.approx(2.5 + 0.4 + 4.0) and energy.module.mean_w == pytest.approx(6.9)
    assert (energy.readings, energy.seconds, energy.span_ns) == (3, 1.0, (0, SECOND))
    assert energy.module.now_mw == 7400


def test_an_unnamed_board_is_told_by_its_rails_and_an_unknown_one_has_no_module():
    for rails, module in ((line(1000), 5.4), ("RAM 1/2MB VDD_OTHER 100mW/1mW", None)):
        energy = RunningEnergy()
        energy.take(Lines(rails, rails).readings())
        assert energy.module is None if module is None else energy.module.mean_w == pytest.approx(module)


def drawn(board):
    text = io.StringIO()
    Console(file=text, width=100).print(power_watch.view(board))
    return text.getvalue()


def test_the_view_shows_rails_module_clocks_and_temperatures():
    board = Watched("agx-orin-64gb", "measured", AGX_ORIN_64GB, Lines(line(1000), line(3000)))
    board.look()
    text = drawn(board)
    assert text.splitlines()[0].rstrip() == "agx-orin-64gb, 0.5 s, 2 readings"
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.strip()}
    assert rows["VDD_GPU_SOC"] == ["3.00", "2.00", "1.0"] and rows["module"] == ["7.40", "6.40", "3.2"]
    assert "CPU 2 on, 20 % 2201 MHz   GPU 40 % 1300 MHz   EMC 5 % 3199 MHz   NVDLA0 1600 MHz" in text
    assert "cpu 52.9 °C" in text and "-256" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_simulated_says_so_and_what_is_not_known_is_no_zero():
    board = Watched("virtual:other", "simulated", AGX_ORIN_64GB, Lines("RAM 1/2MB VDD_GPU_SOC 100mW/1mW"))
    board.look()
    text = drawn(board)
    assert text.startswith("SIMULATED: virtual:other")
    assert next(row for row in text.splitlines() if row.startswith("module")).split() == ["module", "–", "–", "–"]
    assert board.as_json()["module_j"] is None
    assert "power window" in board.as_json()["energy_missing"]


def test_a_machine_that_is_no_jetson_offers_the_virtual_board(capsys, tmp_path):
    with pytest.raises(OrinError, match=f"no Jetson, so it has no rails to watch; try --board {VIRTUAL}"):
        watch(Request(root=tmp_path), lambda board: None)
    code, out, said = run(capsys, "--board", "toaster", "--seconds", "1")
    assert (code, out, said.count("\n")) == (2, "", 1) and "--board is 'toaster', expected jetson" in said


@pytest.mark.parametrize(
    "words,message",
    [
        (["--seconds", "0"], "--seconds is 0, expected a positive number"),
        (["--interval", "-5"], "--interval is -5, expected a positive number"),
        (
            ["--board", VIRTUAL, "--source", "hwmon"],
            "choose what reads a real board; virtual:agx-orin-64gb has its own",
        ),
        (["--board", VIRTUAL, "--interval", "50"], "choose what reads a real board; virtual:agx-orin-64gb has its own"),
    ],
)
def test_bad_arguments_are_one_line(capsys, words, message):
    code, out, said = run(capsys, *words)
    assert (code, out, said.count("\n")) == (2, "", 1) and message in said


@pytest.fixture
def jetson(tmp_path):
    """A made-up AGX Orin: its device tree and its sensors."""
    rails = [("VDD_GPU_SOC", 20000, 500), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 5000, 800)]
    chip(tmp_path, "1-0040", "hwmon4", rails, samples=512, update_interval=1)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3701-0005\0nvidia,tegra234\0")
    return tmp_path


def test_a_jetson_is_watched_through_its_sensors(jetson):
    drawn_at = []
    found = watch(Request(None, "hwmon", 5, 0.6, jetson), lambda board: drawn_at.append(board.energy.readings))
    values = json.loads(json.dumps(found.as_json()))
    assert len(drawn_at) >= 1 and drawn_at[-1] == values["readings"]
    assert (values["board"], values["provenance"]) == ("agx-orin-64gb", "measured")
    assert values["last"]["rails_mw"]["VDD_GPU_SOC"] == [10000, None, None] and values["last"]["module_mw"] == 16000
    assert values["module_j"] == pytest.approx(16 * values["seconds"])


def test_a_board_s_rails_may_be_named(jetson):
    (jetson / "proc/device-tree/compatible").unlink()
    found = watch(Request("agx-orin-64gb", "hwmon", 5, 0.05, jetson), lambda board: None)
    assert found.facts is AGX_ORIN_64GB and found.provenance == "measured"


def test_ctrl_c_ends_the_view_and_keeps_the_figures(jetson):
    def stop(board):
        raise KeyboardInterrupt

    found = watch(Request(None, "hwmon", 5, None, jetson), stop)
    assert found.energy.module.now_mw == 16000


def test_a_sensor_that_fails_ends_the_watch(jetson):
    def break_it(board):
        (jetson / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4/curr2_input").unlink(missing_ok=True)

    with pytest.raises(PowerError, match="rail VDD_CPU_CV: .* cannot be read"):
        watch(Request(None, "hwmon", 1, None, jetson), break_it)


def test_the_virtual_board_runs_its_own_tegrastats(capsys):
    code, out, said = run(capsys, "--board", VIRTUAL, "--seconds", "0.3", "--json", "--quiet")
    values = json.loads(out)
    assert (code, said, values["provenance"], values["board"]) == (0, "", "simulated", VIRTUAL)
    assert "orin.virtual.tegrastats" in values["source"] and values["readings"] >= 1
    assert values["last"]["rails_mw"]["VIN_SYS_5V0"][0] == 4000  # idle in the model: 40 steps of the sensor
    assert values["last"]["gpu"]["freq_mhz"]


def test_the_command_draws_a_view(capsys):
    code, out, said = run(capsys, "--board", VIRTUAL, "--seconds", "0.3")
    assert code == 0 and out.startswith(f"SIMULATED: {VIRTUAL}") and "module" in out and "EMC" in out
    assert "--json prints these figures with their uncertainty" in said
