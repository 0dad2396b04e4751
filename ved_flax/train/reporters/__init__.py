"""Who sees what a training job does: progress bar, JSONL, TensorBoard, pictures, profiler trace.

A reporter has `on_step(step, metrics)`, called behind each step that is reported, `on_evaluation(step, evaluation)` and
`close()`. They know these metrics of a step by name, all of them optional, and keep any other: loss, learning_rate,
images_per_second, tokens_per_second, mfu. A job that goes on makes its reporters with the step that it was restored to:
what they recorded beyond it is taken back.
"""
