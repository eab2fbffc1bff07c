"""A plan is one commented YAML file that says everything, and refuses what makes no sense."""

import pytest
import yaml

from orin.errors import OrinError
from orin.plan import Plan


def test_file_round_trip_keeps_every_field(tmp_path):
    plan = Plan(network="resnet50", gpu_batch=0, dla_batch=8, dla_loop=4, mode="30W", calibration="a b.cache")
    path = tmp_path / "plan.yaml"
    path.write_text(plan.dumps())
    assert Plan.load(path) == plan
    clocks = Plan(clocks_mhz={"gpu": 612.0, "emc": 2133.0})
    assert Plan.loads(clocks.dumps()) == clocks


def test_every_line_is_a_commented_field():
    lines = Plan().dumps().splitlines()
    assert all(line.count(" # ") == 1 for line in lines)
    assert list(yaml.safe_load(Plan().dumps())) == [line.split(":")[0] for line in lines]


def test_one_changed_field_is_one_changed_line():
    a, b = Plan().dumps().splitlines(), Plan(dla_batch=4).dumps().splitlines()
    assert [x.split(":")[0] for x, y in zip(a, b) if x != y] == ["dla_batch"]


def test_accelerators_and_items():
    plan = Plan(gpu_batch=0, dla_cores=1, dla_batch=2, dla_loop=4)
    assert plan.accelerators == ("dla0",)
    assert plan.item_samples("dla0") == 8
    assert Plan().accelerators == ("gpu", "dla0", "dla1")


@pytest.mark.parametrize(
    "text,says",
    [
        ("gpu_batch: -1", "gpu_batch is -1, expected a whole number from 0 to 4096"),
        ("dla_batch: 2.5", "dla_batch is 2.5"),
        ("gpu_bacth: 2", "unknown field 'gpu_bacth'; fields are network"),
        ("sparsity: 2", "sparsity is 2, expected true or false"),
        ("stack: trtexec-9", "stack is 'trtexec-9', expected one of mlperf-v2.0"),
        ("gpu_batch: 0\ndla_cores: 0", "uses no accelerator"),
        ("mode: MAXN\nclocks_mhz: {gpu: 612}", "both mode and clocks_mhz"),
        ("network: 5", "network is 5, expected text"),
        ("network: null", "network is None, expected text"),
        ("mode: 30", "mode is 30, expected text or null"),
        ("weights: [a]", "weights is ['a'], expected text or null"),
        ("calibration: 4", "calibration is 4, expected text or null"),
        ("rewrites: null", "rewrites is None, expected a list of names"),
        ("rewrites: global-pool", "rewrites is 'global-pool', expected a list of names"),
        ("clocks_mhz: 612", "clocks_mhz is 612, expected a mapping such as {gpu: 612}"),
        ("gpu_input_format: CHW5", "gpu_input_format is 'CHW5', expected one of LINEAR, CHW4, CHW16"),
        ("- a", "holds list, expected a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(text, says):
    with pytest.raises(OrinError) as caught:
        Plan.loads(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
