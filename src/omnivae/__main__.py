"""``python -m omnivae``: the same as the ``omnivae`` command."""

import sys

from omnivae.cli.main import main

sys.exit(main())
