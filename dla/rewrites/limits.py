"""What the DLA of Orin takes, as far as the rewrites aim at it.

Sources: TensorRT developer guide 8.4 and 10.3, "DLA Supported Layers and Restrictions"; NvInfer.h release/10.3.
"""

from __future__ import annotations

MAX_DIM = 8192  # of channels, height and width
MAX_POOL_WINDOW = 8
MAX_POOL_PAD = 7
MAX_CONV_KERNEL = 32
MAX_CONV_PAD = 31
MAX_CONV_STRIDE = 8
MAX_DECONV_KERNEL = 22  # square ones from 23 to 32 are switched off in TensorRT for their compile time
MAX_RESIZE = {"nearest": 32, "linear": 4}
# coordinate transformation and rounding that the DLA has for a nearest Resize; a linear one has half_pixel
NEAREST_FORMS = (
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
)
