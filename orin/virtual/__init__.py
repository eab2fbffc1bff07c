"""The virtual Orin: a model fitted to published measurements, predicting at once or running in wall time."""
