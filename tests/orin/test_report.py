"""The report page, and the maker of small run folders that the tests beside it use too."""

import re
import subprocess
import sys
import time
import types
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from orin.plan import Plan
from orin.record import Recorder, load_record
from orin.report import write_report
from orin.report.figures import ceiling, rows, state
from orin.report.page import busy_ns
from orin.report.pictures import timeline_window_ms
from orin.report.text import milliseconds, number, quantity
from orin.report.trace import decimate, read_trace
from orin.results import result

BEGIN_NS = 5_000_000_000
MACS = 4_089_184_256
CLOCKS = {"gpu_mhz": 1300.5, "dla_mhz": 1600.0, "emc_mhz": 3199.0, "cpu_mhz": 2201.6, "sms": 16, "cpus": 12}
RAILS = {"VDD_GPU_SOC": 20.0, "VDD_CPU_CV": 8.0, "VIN_SYS_5V0": 6.0, "VDDQ_VDD2_1V8AO": 1.5}
ITEM_NS = {"gpu": (256, 50_000_000), "dla0": (2, 2_000_000), "dla1": (2, 2_100_000)}


def start_values(plan, **changes):
    return {
        "provenance": "simulated",
        "board": "virtual:agx-orin-64gb",
        "soc": "agx-orin-64gb",
        "stack": plan.stack,
        "scenario": "offline",
        "mode": "performance",
        "seconds": 2.0,
        "plan": plan.as_json(),
        "network": {"name": "resnet50", "weights": "untrained (seeded)", "macs": MACS, "engines": {"gpu": "ab12"}},
        "data": {
            "samples": 1024,
            "sources": ["a.jpg", "a.jpg#1", "b.jpg"],
            "skipped": [{"source": "photos/<broken>.jpg", "reason": "not an image"}],
        },
        "outputs": "none",
        "environment": {"python": "3.11.7", "packages": {"numpy": "2.0"}, "command": "orin bench"},
        "clocks": CLOCKS,
        "prediction": {
            "samples_per_s": 7000.0,
            "ceiling": {"compute_samples_per_s": 16832.0, "dram_samples_per_s": 8000.0},
        },
        "memory": {"kind": "mapped", "layouts": [{"input": "image", "format": "CHW4", "bytes": 1024}]},
        **changes,
    }


def end_values(seconds, power=True):
    watts = {name: {"value": value, "u95": 0.02 * value} for name, value in RAILS.items()}
    energy = {
        "duration_s": seconds,
        "rails_w": watts,
        "rails_j": {},
        "module_w": {"value": 34.0, "u95": 0.5},
        "module_j": {"value": 34.0 * seconds, "u95": 0.5 * seconds},
        "idle_w": {"value": 10.2, "u95": 0.3},
        "net_j": None,
        "samples": 20,
        "coverage": 0.998,
        "largest_gap_s": 0.103,
    }
    return {
        "settings": {
            "scenario": "offline",
            "seconds": seconds,
            "expected": 6000.0,
            "accuracy": False,
            "server_latency_ms": 15.0,
        },
        "loadgen": {"result_samples_per_second": 6800.0, "result_validity": "VALID"},
        "valid": True,
        "invalid_reasons": [],
        "window_ns": [BEGIN_NS, BEGIN_NS + int(seconds * 1e9)],
        "copied_bytes": 2048,
        "sample_bytes": 200_704,
        "power": energy if power else None,
        **({} if power else {"power_missing": "2 readings in the window, 3 are needed"}),
    }


def note_items(recorder, plan, seconds):
    for name in plan.accelerators:
        samples, length_ns = ITEM_NS[name]
        for begin_ns in range(BEGIN_NS, BEGIN_NS + int(seconds * 1e9), length_ns):
            recorder.note(
                types.SimpleNamespace(
                    accelerator=name, begin_ns=begin_ns, end_ns=begin_ns + length_ns, ids=range(samples)
                )
            )


def note_power(recorder, seconds):
    for at_ns in range(BEGIN_NS - 1_000_000_000, BEGIN_NS + int((seconds + 0.5) * 1e9), 100_000_000):
        busy = BEGIN_NS < at_ns < BEGIN_NS + seconds * 1e9
        parts = [f"{name} {round(watts * (1000 if busy else 300))}mW/1mW" for name, watts in RAILS.items()]
        recorder.power_line(at_ns, "RAM 1/61369MB CPU [0%@729] " + " ".join(parts))


def make_run(root, seconds=2.0, plan=None, start=None, end=None, status="finished", power=True):
    """Make a run folder through the Recorder, as `orin bench` does; return the record as read back."""
    plan = plan or Plan(gpu_batch=256, dla_batch=2)
    recorder = Recorder(root, start_values(plan, **(start or {})))
    note_items(recorder, plan, seconds)
    if power:
        note_power(recorder, seconds)
    whole = end_values(seconds, power) if status == "finished" else {}
    recorder.finish({**whole, **(end or {})}, status)
    return load_record(recorder.folder)


class Page(HTMLParser):
    """Collects what the tests look at: text of headings and of SVG, tags that would load something."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.found, self.links, self.svgs = [], {}, [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.svgs += tag == "svg"
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if self.stack and data.strip():
            self.found.setdefault(self.stack[-1], []).append(data.strip())


def texts_of(record):
    return dict(rows(record, result(record)))


def report(record):
    return write_report(record).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The report of a plain run, which tests only read."""
    return report(make_run(tmp_path_factory.mktemp("runs")))


def test_every_title_of_a_simulated_run_says_so(simulated):
    page = Page(simulated)
    titles = page.found["title"] + page.found["h1"] + page.found["h2"]
    assert len(titles) >= 8
    assert all("SIMULATED" in title for title in titles)
    assert page.svgs == 3
    drawn = [text for text in page.found["text"] if text.startswith("SIMULATED: ")]
    assert sorted(drawn) == [
        "SIMULATED: accelerators at work",
        "SIMULATED: duration of a work item",
        "SIMULATED: power",
    ]


def test_a_measured_run_is_never_called_simulated(tmp_path):
    assert "SIMULATED" not in report(make_run(tmp_path, start={"provenance": "measured"}))


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(simulated):
    assert all(link.startswith("#") for link in Page(simulated).links)
    assert not re.search(r"url\((?!#)|@import|<script", simulated)
    assert "&lt;broken&gt;.jpg" in simulated
    assert "<broken>" not in simulated


def test_pictures_are_well_formed_and_share_no_ids(simulated):
    ids = []
    for svg in re.findall(r"<svg.*?</svg>", simulated, re.DOTALL):
        ids += [element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 3


def test_a_long_run_keeps_the_page_small(tmp_path):
    record = make_run(tmp_path, seconds=30.0)
    assert len(record.batches) > 25_000
    assert write_report(record).stat().st_size < 1_000_000


def test_the_ceiling_is_the_lower_of_arithmetic_and_dram(tmp_path):
    found = ceiling(make_run(tmp_path))
    assert (found.samples_per_s, found.bound) == (8000.0, "DRAM")


def test_an_unknown_board_has_no_ceiling_and_still_a_report(tmp_path):
    record = make_run(tmp_path, start={"board": "jetson", "provenance": "measured", "prediction": {}})
    assert ceiling(record) is None
    text = report(record)
    assert "Ceiling" not in text
    assert "Share of the samples" in text


def test_figures_say_what_the_record_holds(tmp_path):
    texts = texts_of(make_run(tmp_path))
    assert texts["throughput"] == "6,800 samples/s"
    assert texts["ceiling"] == "8,000 samples/s (DRAM bound); 85.0 % reached"
    assert texts["predicted"] == "7,000 samples/s by the virtual Orin; this run -2.9%"
    assert texts["module power"] == "34.00 ± 0.50 W"
    assert texts["efficiency"] == "200.0 ± 2.9 samples/J"
    assert texts["LoadGen"] == "VALID (short run of 2 s: MLPerf asks for 600 s)"
    assert texts["photos"] == "1,024 samples from 2 photos; 1 skipped: <broken>.jpg (not an image)"
    assert texts["network"].startswith("4.089 GMACs a sample, weights untrained (seeded): ")
    samples = 40 * 256 + 1000 * 2 + 953 * 2
    assert texts["copied"] == f"{2048 / samples:.3f} bytes a sample (a sample has 200,704)"
    assert texts["share"].startswith(f"gpu {100 * 40 * 256 / samples:.1f} %, dla0 ")


def test_tables_flatten_what_the_record_nests(simulated):
    cells = Page(simulated).found
    pairs = dict(zip(cells["th"], cells["th"][1:]))
    assert pairs["clocks.gpu_mhz"] == "clocks.dla_mhz"
    assert "input image format CHW4 bytes 1024" in cells["td"]
    assert "99.8 % of the window, longest pause 103 ms" in cells["td"]
    assert {"10.20 ± 0.30 W", "68.0 ± 1.0 J", "CPU, DLA and PVA"} <= set(cells["td"])


def test_an_official_length_is_not_called_short_and_reasons_are_shown(tmp_path):
    settings = {"scenario": "offline", "seconds": 600, "expected": 1.0, "accuracy": False, "server_latency_ms": 15.0}
    end = {"settings": settings, "valid": False, "invalid_reasons": ["Min duration NOT met"]}
    assert texts_of(make_run(tmp_path, end=end))["LoadGen"] == "INVALID: Min duration NOT met"


def test_an_accuracy_run_reports_no_speed(tmp_path):
    record = make_run(tmp_path, start={"mode": "accuracy"})
    texts = texts_of(record)
    assert texts["throughput"] == "none: accuracy runs report no speed"
    assert {"latency", "efficiency"}.isdisjoint(texts)
    assert "samples per second" not in report(record)


def test_a_run_without_power_says_why(tmp_path):
    record = make_run(tmp_path, power=False)
    assert texts_of(record)["module power"] == "not measured: 2 readings in the window, 3 are needed"
    text = report(record)
    assert Page(text).svgs == 2
    assert "not measured" in text


def test_a_failed_run_has_a_report_of_what_there_is(tmp_path):
    record = make_run(tmp_path, status="failed", end={"error": "dla0: enqueueV3 returned false"})
    text = report(record)
    assert "not complete: failed (dla0: enqueueV3 returned false): 14,146 samples measured" in text
    assert Page(text).svgs == 3


def test_a_run_that_failed_before_its_first_work_item_has_a_report(tmp_path):
    recorder = Recorder(tmp_path, start_values(Plan(), clocks=None))
    recorder.finish({"error": "no memory"}, status="failed")
    text = report(load_record(recorder.folder))
    assert "failed (no memory): 0 samples measured" in text
    assert Page(text).svgs == 0


def test_a_run_whose_process_is_gone_is_interrupted(tmp_path):
    record = make_run(tmp_path, status="running")
    assert state(record) == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record.values["process"]["pid"] = gone.pid
    assert state(record) == "interrupted"


def test_another_machines_run_that_stopped_writing_is_interrupted(tmp_path):
    record = make_run(tmp_path, status="running", start={"process": {"host": "elsewhere", "pid": 1}})
    assert state(record, now_s=time.time() + 1) == "running"
    assert state(record, now_s=time.time() + 60) == "interrupted"


def test_the_trace_is_the_log(tmp_path):
    log = tmp_path / "tegrastats.log"
    rails = "VDD_GPU_SOC 3000mW/1mW VDD_CPU_CV 1000mW/1mW VIN_SYS_5V0 500mW/1mW VDDQ_VDD2_1V8AO 100mW/1mW"
    log.write_text(f"100 RAM 1/2MB {rails}\nnot a line\n200 RAM 1/2MB\n300 RAM 1/2MB {rails}\n400 RAM 1/2MB VDD_GP")
    trace = read_trace(log)
    assert trace.at_ns.tolist() == [100, 300]
    assert trace.module_w.tolist() == [4.5, 4.5]
    assert trace.rails_w["VDDQ_VDD2_1V8AO"].tolist() == [0.1, 0.1]
    assert read_trace(tmp_path / "none.log") is None


def test_decimation_keeps_the_mean_of_each_stretch():
    values = np.arange(10.0)
    assert decimate(values, 5).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert decimate(values, 10) is values


def test_the_timeline_shows_the_middle_and_not_too_many_bars():
    def spans(length_ms, count):
        begin = np.arange(count) * float(length_ms)
        return np.stack([begin, begin + length_ms, np.ones(count)], axis=1)

    assert timeline_window_ms([spans(50, 40), spans(2, 1000)]) == (850.0, 1150.0)
    low, high = timeline_window_ms([spans(500, 4), spans(0.1, 20_000)])
    assert (high - low) / 0.1 <= 240.5


def test_busy_time_counts_overlaps_once():
    assert busy_ns(np.array([[0, 10], [5, 12], [6, 8], [20, 30]])) == 22


@pytest.mark.parametrize(
    "value,u95,text",
    [
        (34.0, 0.5, "34.00 ± 0.50 W"),
        (1234.5, 32.0, "1,234 ± 32 W"),
        (0.5, 0.0012, "0.5000 ± 0.0012 W"),
        (5, 0, "5.00 W"),
    ],
)
def test_quantities_show_two_digits_of_their_uncertainty(value, u95, text):
    assert quantity({"value": value, "u95": u95}, "W") == text


def test_numbers_show_at_least_three_digits():
    assert [number(v) for v in (6812.4, 81.26, 0.05123, 0.0, None)] == ["6,812", "81.3", "0.0512", "0", "–"]
    assert [milliseconds(v) for v in (0.0312, 4.5, 10012.0)] == ["31.2 us", "4.50 ms", "10.0 s"]
