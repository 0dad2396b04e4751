"""`python -m ved_flax.train`."""

import sys

from ved_flax.train.command import main

sys.exit(main())
