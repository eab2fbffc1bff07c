"""Building engines with NVIDIA's TensorRT: implicit INT8 (up to 10.x) and explicit INT8 (11)."""
