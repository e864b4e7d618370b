"""`python -m convert SRC DST`."""

import sys

from convert.command import main

sys.exit(main())
