"""The board itself: TensorRT and CUDA on an attached Jetson."""
