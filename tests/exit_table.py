"""README's table of exit statuses."""

from ved_core.exit_status import MEANING


def table() -> str:
    """One line for each."""
    return "\n".join(
        ["| status | meaning |", "|---|---|", *(f"| {status.value} | {text} |" for status, text in MEANING.items())]
    )
