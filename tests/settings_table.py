"""README's table of training settings."""

from ved_flax.train.config import TrainConfig
from ved_flax.train.settings import describe


def table() -> str:
    """One line for each setting."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in describe(TrainConfig):
        text = setting.text.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | `{setting.default or chr(39) * 2}` | {text} |")
    return "\n".join(lines)
