"""`python -m ssetools`, and `accelerate launch -m ssetools` on several devices or machines."""

import sys

from ssetools.cli import main

sys.exit(main())
