"""The parsers that are ours, searched by Atheris (`pip install "ved[fuzz]"`), which follows what code each input runs:

    python -m tests.fuzz.search flax -max_total_time=300

Parsers: those of `tests.fuzz.parsers`. Further arguments are libFuzzer's. What it finds goes into the working
directory as crash-*; what is new to it goes nowhere, unless a folder is given.
"""

import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["conversion", "ved_core", "pickletools", "zipfile"]):
    from tests.fuzz.parsers import CORPUS, READERS, parse


def main() -> None:
    """Search until libFuzzer ends."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz.search {{{','.join(READERS)}}} [libFuzzer's arguments]")
    name = sys.argv[1]
    given = sys.argv[2:]
    options = ["-max_len=8192", "-timeout=5", "-rss_limit_mb=2048", *given]
    with tempfile.TemporaryDirectory() as found:  # new inputs go into the first folder
        folders = [] if any(not argument.startswith("-") for argument in given) else [found]
        atheris.Setup([sys.argv[0], *options, *folders, str(CORPUS / name)], lambda data: parse(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
