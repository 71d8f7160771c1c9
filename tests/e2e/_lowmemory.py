"""garrisond that may call any share of the host's memory low, and not a line of the agent changed.

On a host at most a tenth of the memory can be asked for as room: no test could bring a machine there without harm. Here
the bound is as large as ``available_min`` says, so that what is available now can be less than it.

python _lowmemory.py --config FILE
"""

import sys

from garrison.supervisor.hostwatch import giving_way
from garrison.supervisor.main import main

if __name__ == "__main__":
    giving_way.TOTAL_SHARE = 1.0
    sys.exit(main())
