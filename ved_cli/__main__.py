"""`python -m ved_cli`."""

import sys

from ved_cli import main

sys.exit(main())
