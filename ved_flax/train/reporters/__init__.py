"""Who sees what a training job does: progress bar, TensorBoard, pictures, profiler trace.

A reporter has `on_step(step, metrics)`, called behind each step that is reported, `on_evaluation(step, results)`, whose
results are an `Evaluation` or any mapping of names to numbers, and `close()`. Metrics that are known by name: loss,
learning_rate, and images and tokens since the last call; all are optional, and others are shown where there is room. A
job that goes on makes its reporters with the step that it was restored to.
"""
