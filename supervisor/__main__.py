"""``python -m garrison.supervisor`` is ``garrisond``."""

import sys

from garrison.supervisor.main import main

sys.exit(main())
