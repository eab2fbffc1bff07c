"""What `jetson_clocks --show` prints on L4T 35 to 39, and the commands that store, lock and put back."""

from pathlib import Path

from power.clocks import LOCK, ClockRange, parse_show, put_back, store

R35 = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-7
cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=1728000 IdleStates: WFI=1 c7=1
cpu8: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=0
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1600000000 CurrentFreq=1600000000
FAN Dynamic Speed control=active hwmon2_pwm1=55
NV Power Mode: MAXN
"""
R39 = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-11, Offline CPUs:
cpu0: Governor=schedutil MinFreq=2201600 MaxFreq=2201600 CurrentFreq=2201600 IdleStates: WFI=0 c7=0
GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000
Active GPU TPCs: 8
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1600000000 CurrentFreq=115200000
FAN Dynamic Speed Control=nvfancontrol hwmon2_pwm1=66
FAN Dynamic Speed Control=nvfancontrol hwmon2_pwm1_enable=1
NV Power Mode: MAXN
"""


def test_show_of_l4t_35():
    found = parse_show(R35)
    assert set(found) == {"cpu0", "GPU", "EMC", "DLA0_CORE"}
    assert found["cpu0"] == ClockRange(729.6, 2201.6, 1728.0)
    assert found["DLA0_CORE"] == ClockRange(0.0, 1600.0, 1600.0)
    assert not found["GPU"].is_locked


def test_show_of_l4t_39():
    found = parse_show(R39)
    assert set(found) == {"cpu0", "GPU", "EMC", "DLA0_CORE"}
    assert found["GPU"].is_locked and found["cpu0"].is_locked and found["EMC"].max_mhz == 3199.0


def test_show_without_root_has_no_clocks():
    assert parse_show("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n") == {}


def test_commands_name_a_file_and_say_whether_they_change_anything():
    path = Path("/state/clocks.conf")
    assert str(store(path)) == "sudo -n jetson_clocks --store /state/clocks.conf" and not store(path).changes
    assert str(put_back(path)) == "sudo -n jetson_clocks --restore /state/clocks.conf" and put_back(path).changes
    assert str(LOCK) == "sudo -n jetson_clocks" and LOCK.changes
