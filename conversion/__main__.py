"""`python -m conversion SOURCE TARGET --to FORMAT`; `ved convert` has the same and --verify."""

import argparse
import sys

from conversion import command
from ved_core.errors import VedError


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m conversion",
        description=command.DESCRIPTION,
        epilog=command.EPILOG.format(prog="python -m conversion"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None
        return 1
    except (VedError, OSError) as error:
        print(f"conversion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


sys.exit(main())
