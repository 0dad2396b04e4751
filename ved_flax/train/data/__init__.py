"""Training data: sources of samples (`sources`), and the pipeline that makes batches of them (`batches`).

Only the config is imported here; the modules bring grain, transformers and the formats' own libraries when used.
"""

from ved_flax.train.data.config import DataConfig

__all__ = ["DataConfig"]
