"""`python -m jprune`: the command line; see `jprune.cli`."""

import sys

from jprune.cli import main

sys.exit(main())
