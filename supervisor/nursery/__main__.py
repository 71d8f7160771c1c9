"""``python -m garrison.supervisor.nursery FD``: started by the master only."""

import sys

from garrison.supervisor.nursery.process import main

sys.exit(main(int(sys.argv[1])))
