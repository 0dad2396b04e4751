"""What decoding does, for both frameworks: its options, where they come from, and the plan that a loop follows."""

from ved_core.generation.config import GENERATION_CONFIG_FILE, GenerationConfig
from ved_core.generation.options import Options, completed
from ved_core.generation.plan import Plan, Request, Rows, plan_decoding

__all__ = [
    "GENERATION_CONFIG_FILE",
    "GenerationConfig",
    "Options",
    "Plan",
    "Request",
    "Rows",
    "completed",
    "plan_decoding",
]
