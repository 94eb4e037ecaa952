"""``python -m resgrow`` is the command ``resgrow``."""

import sys

from resgrow.cli import main

sys.exit(main())
