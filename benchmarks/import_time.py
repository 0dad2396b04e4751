"""What `import ved_flax` costs over importing jax and flax.nnx alone: median of alternating fresh processes."""

import statistics
import subprocess
import sys
import time

ROUNDS = 7
BARE = "import jax, flax.nnx"


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print both medians and their difference, with the spread of the pairs."""
    for statement in (BARE, f"{BARE}, ved_flax"):
        seconds(statement)
    pairs = [(seconds(BARE), seconds(f"{BARE}, ved_flax")) for _ in range(ROUNDS)]
    bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    extra = sorted(ours - bare for bare, ours in pairs)
    print(f"import jax, flax.nnx   {bare:.2f} s")
    print(f"  and ved_flax         {ours:.2f} s")
    print(f"difference             {statistics.median(extra):.2f} s (pairs: {extra[0]:.2f} to {extra[-1]:.2f})")


if __name__ == "__main__":
    main()
