"""YOLOv5s v6 (anchor based), batch normalisation folded into the convolutions.

Tensors are named as in NVIDIA's cuDLA sample, so that its calibration cache fits.
Source: Ultralytics YOLOv5 releases v6.0 to v7.0; NVIDIA-AI-IOT/cuDLA-samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.zoo.builder import NetworkBuilder, Spread, Window

if TYPE_CHECKING:
    import onnx

    from engines.zoo.store import Store

SEED = 5
CLASSES = 80
ANCHORS = 3  # of a cell
SIDE = 640
STEM = Spread(gain=4.0, zero_sum=False)  # images on 0..1
SILU = Spread(gain=1.74)  # about keeps the standard deviation through SiLU and a zero-sum filter
HEAD = Spread(gain=1.0)
BACKBONE = tuple(f"/model.{layer}/{last}/act/Mul_output_0" for layer, last in ((4, "cv3"), (6, "cv3"), (9, "cv2")))


def build(store: Store | None, side: int = SIDE) -> onnx.ModelProto:
    """Return the network, `images` [1,3,side,side] to `p3`, `p4`, `p5` at side/8, /16, /32; side a multiple of 32.

    Channels of a cell are anchor-major: 3 times x, y, w, h, objectness and 80 classes.
    """
    net = _Yolo(SEED, store, suffix="_output_0")
    p3, p4, p5 = _backbone(net, net.input("images", (1, 3, side, side)))
    for level, x in enumerate(_neck(net, p3, p4, p5)):
        head = net.conv(x, f"/model.24/m.{level}/Conv", ANCHORS * (5 + CLASSES), Window(1), HEAD)
        net.output(head, f"p{level + 3}")
    return net.model("yolov5s")


def _backbone(net: _Yolo, x: str) -> tuple[str, str, str]:
    """Add layers 0 to 9; returns the maps at strides 8, 16 and 32."""
    x = net.conv_silu(x, "/model.0", 32, Window(6, 2, 2), STEM)
    maps = []
    for layer, (channels, blocks) in enumerate(((64, 1), (128, 2), (256, 3), (512, 1))):
        x = net.conv_silu(x, f"/model.{2 * layer + 1}", channels, Window(3, 2, 1))
        x = net.c3(x, f"/model.{2 * layer + 2}", channels, blocks)
        maps.append(x)
    return maps[1], maps[2], net.pooled(x, "/model.9")


def _neck(net: _Yolo, p3: str, p4: str, p5: str) -> tuple[str, str, str]:
    """Add layers 10 to 23, down the pyramid and up again; the newer branch comes first in each concatenation."""
    narrow5 = net.conv_silu(p5, "/model.10", 256, Window(1))
    x = net.concat([net.upsample(narrow5, "/model.11/Resize"), p4], "/model.12/Concat")
    narrow4 = net.conv_silu(net.c3(x, "/model.13", 256), "/model.14", 128, Window(1))
    x = net.concat([net.upsample(narrow4, "/model.15/Resize"), p3], "/model.16/Concat")
    out3 = net.c3(x, "/model.17", 128)
    x = net.concat([net.conv_silu(out3, "/model.18", 128, Window(3, 2, 1)), narrow4], "/model.19/Concat")
    out4 = net.c3(x, "/model.20", 256)
    x = net.concat([net.conv_silu(out4, "/model.21", 256, Window(3, 2, 1)), narrow5], "/model.22/Concat")
    return out3, out4, net.c3(x, "/model.23", 512)


class _Yolo(NetworkBuilder):
    """A builder with the blocks of YOLOv5."""

    def conv_silu(self, x: str, name: str, channels: int, window: Window, spread: Spread = SILU) -> str:
        """Add a convolution and SiLU, as Sigmoid and Mul."""
        x = self.conv(x, f"{name}/conv/Conv", channels, window, spread)
        gate = self.node("Sigmoid", [x], f"{name}/act/Sigmoid", self.shape(x))
        return self.node("Mul", [x, gate], f"{name}/act/Mul", self.shape(x))

    def c3(self, x: str, name: str, channels: int, shortcuts: int = 0) -> str:
        """Add two branches and the convolution over both: on one `shortcuts` residual blocks, or a plain one for 0."""
        half = channels // 2
        y = self.conv_silu(x, f"{name}/cv1", half, Window(1))
        for block in range(max(shortcuts, 1)):
            inside = f"{name}/m/m.{block}"
            z = self.conv_silu(y, f"{inside}/cv1", half, Window(1))
            z = self.conv_silu(z, f"{inside}/cv2", half, Window(3, 1, 1))
            y = self.add(y, z, f"{inside}/addop/Add") if shortcuts else z
        other = self.conv_silu(x, f"{name}/cv2", half, Window(1))
        return self.conv_silu(self.concat([y, other], f"{name}/concat/Concat"), f"{name}/cv3", channels, Window(1))

    def pooled(self, x: str, name: str) -> str:
        """Add spatial pyramid pooling: three 5x5 poolings in a row, all four tensors concatenated."""
        channels = self.shape(x)[1]
        parts = [self.conv_silu(x, f"{name}/cv1", channels // 2, Window(1))]
        for node in ("m", "m_1", "m_2"):
            parts.append(self.max_pool(parts[-1], f"{name}/{node}/MaxPool", Window(5, 1, 2)))
        return self.conv_silu(self.concat(parts, f"{name}/concat/Concat"), f"{name}/cv2", channels, Window(1))
