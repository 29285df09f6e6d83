"""``python -m riemann_unlearn`` is the command line."""

import sys

from riemann_unlearn.cli import main

sys.exit(main())
