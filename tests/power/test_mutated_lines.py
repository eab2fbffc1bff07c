"""10,000 broken lines: none raises, and a total is the sum of the rails as they are printed, or there is none."""

import json
import random
import re
from pathlib import Path

import pytest

from power.boards import BOARDS
from power.reading import parse_line, parse_log

LOGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tegrastats"
LINES = (
    "03-04-2026 05:06:07 RAM 1000/2000MB (lfb 3x4MB) SWAP 5/100MB (cached 2MB) CPU [12%@1728,off,0%@729] "
    "EMC_FREQ 7%@3199 GR3D_FREQ 34%@[1300,0] NVENC off NVDLA0_FREQ @1600 APE 174 cpu@50.5C GPU@-256C "
    "VDD_GPU_SOC 5000mW/4000mW VDD_CPU_CV 1200mW/1000mW VIN_SYS_5V0 3000mW/2500mW "
    "VDDQ_VDD2_1V8AO 900mW/800mW NC 0mW/0mW",
    "RAM 10/20MB (lfb 1x512kB) CPU [1%@2,3%@4] EMC_FREQ 0% GR3D_FREQ 0% cpu@50C/51.5C VDD_IN 5000mW/4000mW/6000mW "
    "VDD_CPU_GPU_CV 1200mW/1000mW/1300mW VDD_SOC 900mW/800mW/1000mW",
    "RAM 10/20MB (lfb 1x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@2] EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 "
    "MTS fg 0% bg 1% AO@37.5C GPU@37.5C GPU 300/200 CPU 311/300 SOC 932/900 CV 0/0 VDDRQ 621/600 SYS5V 1482/1400",
    "RAM 10/20MB (lfb 1x4MB) cpu [5%,off]@408 EMC 7%@408 GR3D 9%@76 PLL@24C POM_5V_IN 2900/2800 POM_5V_GPU 900/800 "
    "POM_5V_CPU 400/300",
    "05-14-2026 21:36:35 RAM 1/2MB CPU [2%@972,...] VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW "
    "VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW",
)
PIECES = (
    "",
    " ",
    "\t",
    "9",
    "-",
    "/",
    "@",
    "%",
    "off",
    "mW",
    "C",
    "[",
    "]",
    ",",
    "(",
    "NC",
    "\x00",
    "é",
    "٣",
    "²",
    "...",
)
TOTALS = {facts.rule.total for facts in BOARDS.values() if facts.rule.total}


def mutated(line, dice):
    text = list(line)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(text) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            text[at : at + dice.randrange(4)] = dice.choice(PIECES)
        elif kind == 1:
            text[at:at] = text[at : at + dice.randrange(30)]
        elif kind == 2:
            del text[at : at + dice.randrange(12)]
        else:
            text = text[: max(at, len(text) // 2)]
    return "".join(text)


def printed_mw(line, name):
    """Numbers that stand right behind a name, found without the parser."""
    words = line.split()
    behind = [follower for word, follower in zip(words, words[1:], strict=False) if word == name]
    return {int(number[0]) for follower in behind if (number := re.match(r"-?\d+(?=mW|/)", follower))}


def check(line):
    """Return whether the line has a total, which must be the sum of what it prints."""
    reading = parse_line(line)
    if reading is None:
        return False
    said = json.loads(json.dumps(reading.as_json()))
    now_mw = {name: values[0] for name, values in said["rails_mw"].items()}
    for name, power_mw in now_mw.items():
        assert power_mw in printed_mw(line, name), line
    if said["module_mw"] is None:
        return False
    sums = [sum(now_mw[name] for name in total) for total in TOTALS if set(total) <= set(now_mw)]
    assert sums == [said["module_mw"]], line
    return True


def test_ten_thousand_mutated_lines():
    dice = random.Random(6)
    totals = sum(check(mutated(dice.choice(LINES), dice)) for _ in range(10_000))
    assert totals > 2000


@pytest.mark.skipif(not LOGS.is_dir(), reason="published logs are not at hand")
def test_mutated_lines_of_published_logs():
    lines = [
        line for path in sorted(LOGS.glob("*.log")) for line in path.read_text(encoding="utf-8").splitlines() if line
    ]
    dice = random.Random(7)
    assert sum(check(mutated(dice.choice(lines), dice)) for _ in range(3000)) > 500


def test_mutated_logs():
    dice = random.Random(8)
    for _ in range(50):
        lines = [mutated(dice.choice(LINES), dice) for _ in range(20)]
        numbers = [number for number, _ in parse_log(lines)]
        assert numbers == sorted(set(numbers)) and numbers[0] == 1


@pytest.mark.parametrize(
    "line",
    ["9" * 5000, "RAM 1/2MB " + "VDD_IN " + "9" * 5000 + "mW", "RAM 1/2MB cpu@" + "9" * 300 + "C", "RAM", "CPU", "@"],
)
def test_lines_of_absurd_length_or_none(line):
    reading = parse_line(line)
    assert reading is None or not reading.rails and not reading.temperatures_c
