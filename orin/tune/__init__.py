"""The tuner: probe, refit the model to this board, score the whole space, verify the uncertain best, stop."""
