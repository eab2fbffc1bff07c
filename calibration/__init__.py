"""INT8 calibration: photos in, dynamic ranges and TensorRT calibration caches out."""
