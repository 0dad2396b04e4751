"""Training: data, the compiled step, checkpoints, evaluation and reports."""
