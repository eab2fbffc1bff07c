"""Fair grading of the tuner: a perturbed board, the searches that others use, and regret in board-seconds."""
