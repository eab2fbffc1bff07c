import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from engines import zoo
from engines.errors import EngineError

from .models import small


@pytest.fixture(scope="module")
def resnet():
    return zoo.model("resnet50")


def photos(count):
    """Smooth random colours with a little noise, minus the mean: an image's statistics, no image."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (count, 3, 7, 7)).repeat(32, axis=2).repeat(32, axis=3)
    noisy = np.clip(coarse + rng.normal(0, 10, coarse.shape), 0, 255)
    return (noisy - np.array([123.68, 116.78, 103.94]).reshape(1, 3, 1, 1)).astype(np.float32)


def test_seeded_weights_keep_all_sixteen_blocks_alive_and_tell_images_apart(resnet):
    probe = onnx.ModelProto()
    probe.CopyFrom(resnet)
    sums = [f"layer{stage}.{block}.relu3_output" for stage, n in enumerate((3, 4, 6, 3), 1) for block in range(n)]
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in sums)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"input": photo[None]}) for photo in photos(3)]
    for blocks in (run[1:] for run in runs):
        assert len(blocks) == 16
        assert all(1 < block.std() < 100 for block in blocks)
        assert all(0.1 < (block > 0).mean() < 1 for block in blocks)
    logits = np.concatenate([run[0] for run in runs])
    assert np.ptp(logits, axis=0).std() > 0.1 * logits.std()
    assert np.corrcoef(logits)[np.triu_indices(3, 1)].max() < 0.98


def test_seeded_weights_are_the_same_each_time(resnet):
    again = zoo.model("resnet50")
    assert [t.raw_data for t in again.graph.initializer] == [t.raw_data for t in resnet.graph.initializer]


def test_the_graph_has_no_weights():
    bare = zoo.model("resnet50", with_weights=False)
    assert bare.ByteSize() < 100_000
    assert sum(int(np.prod(tensor.dims)) for tensor in bare.graph.initializer) == 25_530_472


def test_facts_agree_with_the_graph():
    for name, entry in zoo.NETWORKS.items():
        graph = zoo.graph(name)
        assert graph.tensors[graph.inputs[0]].shape == (1, *entry.input_shape)
        assert graph.workload.macs == pytest.approx(entry.published_gmacs * 1e9, rel=1e-3)
        assert 0.99 < graph.workload.weight_bytes / entry.published_params <= 1


def test_an_unknown_name_gets_the_known_ones():
    with pytest.raises(EngineError, match="'resnet5' is not in the zoo, which has resnet50; did you mean 'resnet50'"):
        zoo.network("resnet5")


def test_a_checkpoint_is_taken_by_path_with_its_batch_made_static(tmp_path):
    path = tmp_path / "mine.onnx"
    model = zoo.model("resnet50", with_weights=False)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, path)
    loaded = zoo.model("resnet50", path)
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert loaded.graph.node == model.graph.node


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "mine.onnx"
    onnx.save(small(), path)
    with pytest.raises(EngineError, match=r"mine.onnx has inputs x\[1, 3, 8, 8\], expected one image input"):
        zoo.model("resnet50", path)
