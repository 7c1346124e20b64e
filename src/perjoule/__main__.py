"""``python -m perjoule`` is the command line."""

import sys

from perjoule.cli import main

sys.exit(main())
