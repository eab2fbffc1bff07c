"""The child process and its faults, by small programs that behave like a good or a bad tegrastats."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from power.boards import AGX_ORIN_64GB
from power.errors import PowerError
from power.meter import Meter
from power.tegrastats import Tegrastats

PRELUDE = """
import os, signal, sys, time
def line(mw=1000):
    print(f"RAM 1/2MB VDD_GPU_SOC {mw}mW/{mw}mW VDD_CPU_CV 500mW/500mW VIN_SYS_5V0 700mW/700mW", flush=True)
"""
FOREVER = "\nwhile True:\n    line()\n    time.sleep(0.01)"


def program(body):
    return [sys.executable, "-S", "-c", PRELUDE + body]


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_readings_are_stamped_on_arrival_and_raw_lines_handed_on():
    raw = []
    begin_ns = time.monotonic_ns()
    with Tegrastats(program(FOREVER), on_line=lambda stamp_ns, text: raw.append((stamp_ns, text))) as source:
        wait_for(lambda: len(source.readings()) >= 5)
        source.check()
    stamps = [stamp_ns for stamp_ns, _ in source.readings()]
    assert begin_ns < stamps[0] and stamps == sorted(stamps) and stamps[-1] < time.monotonic_ns()
    assert stamps == [stamp_ns for stamp_ns, _ in raw]
    assert raw[0][1].startswith("RAM 1/2MB") and "\n" not in raw[0][1]
    assert source.garbled == 0 and source.failure() is None


def test_a_meter_reads_from_it():
    with Tegrastats(program(FOREVER)) as source:
        wait_for(lambda: len(source.readings()) >= 10)
        samples = Meter(AGX_ORIN_64GB, source).samples
    rails_mw = {"VDD_GPU_SOC": 1000, "VDD_CPU_CV": 500, "VIN_SYS_5V0": 700}
    assert len(samples) >= 10 and all(sample.rails_mw == rails_mw for sample in samples)


def test_stop_ends_the_child_and_can_be_called_twice():
    source = Tegrastats(program("print('pid', os.getpid(), flush=True)" + FOREVER))
    source.start()
    source.stop()
    source.stop()
    count = len(source.readings())
    time.sleep(0.05)
    assert len(source.readings()) == count and source.garbled == 1


def test_a_missing_program_says_what_to_do():
    with pytest.raises(PowerError, match="'no-such-tegrastats' is not on this machine: it comes with JetPack"):
        Tegrastats(["no-such-tegrastats"]).start()


def test_a_program_without_rights_says_so(tmp_path):
    script = tmp_path / "tegrastats"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(PowerError, match="cannot be started: Permission denied"):
        Tegrastats([str(script)]).start()


def test_a_child_that_dies_at_once_gives_its_last_words():
    body = "print('one\\ntwo: no rights\\n', file=sys.stderr); sys.exit(3)"
    with pytest.raises(PowerError, match="ended by itself with exit code 3: two: no rights"):
        Tegrastats(program(body)).start()


def test_a_child_that_is_killed_is_seen_early_and_raised_at_the_end():
    body = "for _ in range(5): line()\ntime.sleep(0.1); os.kill(os.getpid(), signal.SIGKILL)"
    seen = []
    with pytest.raises(PowerError, match="exit code -9: it printed no error"), Tegrastats(program(body)) as source:
        wait_for(lambda: source.failure() is not None)
        seen.append(source.failure())
    assert "ended by itself" in seen[0] and len(source.readings()) == 5


def test_the_last_line_of_a_child_that_has_ended_is_taken_before_its_end_is_told():
    """The reader holds the line back until the child's end has been seen: then its number is no process any more."""

    def until_seen(stamp_ns, text):
        pid = text.split()[-1]
        wait_for(lambda: not Path("/proc", pid).exists())

    source = Tegrastats(program("print('RAM 1/2MB', os.getpid(), flush=True)"), on_line=until_seen)
    source.start()
    assert len(source.readings()) == 1
    with pytest.raises(PowerError, match="ended by itself with exit code 0: it printed no error"):
        source.check()
    with pytest.raises(PowerError, match="ended by itself"):
        source.stop()


def test_the_error_of_the_body_is_not_hidden_by_the_childs():
    with pytest.raises(ZeroDivisionError), Tegrastats(program("line(); time.sleep(0.5)")) as source:
        wait_for(lambda: source.failure() is not None)
        1 / 0  # noqa: B018


def test_silence_from_the_start_is_an_error():
    with pytest.raises(PowerError, match="printed no reading for [0-9.]+ s, expected one every interval"):
        Tegrastats(program("time.sleep(60)"), silence_s=0.3).start()


def test_silence_in_between_is_an_error_even_if_lines_come_back():
    body = "line(); time.sleep(0.8)" + FOREVER
    with pytest.raises(PowerError, match="printed no reading for"), Tegrastats(program(body), silence_s=0.4) as source:
        wait_for(lambda: len(source.readings()) > 5)


def test_garbage_alone_is_an_error_that_shows_the_last_line():
    body = "while True:\n    print('Unknown command: --interval', flush=True)\n    time.sleep(0.05)"
    with pytest.raises(PowerError, match="none of them a reading of tegrastats; last: 'Unknown command: --interval'"):
        Tegrastats(program(body), silence_s=2.0).start()


def test_rails_that_stay_away_are_an_error(monkeypatch):
    """Time passes with the lines alone, half a second each."""
    now_ns = [0]

    def half_a_second_later(stamp_ns, line):
        now_ns[0] += 500_000_000

    monkeypatch.setattr("power.tegrastats.time", SimpleNamespace(monotonic_ns=lambda: now_ns[0], sleep=time.sleep))
    body = "line()\nwhile True:\n    print('RAM 1/2MB', flush=True)\n    time.sleep(0.01)"
    with pytest.raises(PowerError, match="prints no power rail any more, though it did: has it lost its rights"):
        with Tegrastats(program(body), on_line=half_a_second_later, silence_s=5.0) as source:
            wait_for(lambda: source.failure() is not None)


def test_a_log_without_rails_is_none_of_that():
    with Tegrastats(program("while True:\n    print('RAM 1/2MB', flush=True)\n    time.sleep(0.02)")) as source:
        wait_for(lambda: len(source.readings()) > 5)


def test_garbled_lines_are_counted():
    body = "line(); print('^C', flush=True); os.write(1, b'\\xff\\xfe\\n'); line(); time.sleep(60)"
    with Tegrastats(program(body)) as source:
        wait_for(lambda: len(source.readings()) == 2)
    assert source.garbled == 2


def test_an_error_of_the_line_callback_reaches_the_caller():
    def full_disk(stamp_ns, text):
        raise OSError(28, "No space left on device")

    with pytest.raises(PowerError, match="No space left on device"):
        Tegrastats(program(FOREVER), on_line=full_disk).start()


def test_a_child_that_ignores_the_request_is_killed(monkeypatch):
    monkeypatch.setattr("power.tegrastats._TERMINATE_S", 0.2)
    with Tegrastats(program("signal.signal(signal.SIGTERM, signal.SIG_IGN)" + FOREVER)) as source:
        pass
    count = len(source.readings())
    time.sleep(0.05)
    assert len(source.readings()) == count
