"""garrisond on a scaled clock: the breaker's times divided by a number, and not a line of the agent changed.

python _scaled.py DIVISOR --config FILE
"""

import functools
import sys

import msgspec

from garrison.supervisor import agent
from garrison.supervisor.breaker import Policy
from garrison.supervisor.main import main


def scaled(divisor: float) -> Policy:
    """Return the policy with every time divided; counts and shares stay."""
    policy = Policy()
    times = {field.name for field in msgspec.structs.fields(Policy) if field.type is float} - SHARES
    return msgspec.structs.replace(policy, **{name: getattr(policy, name) / divisor for name in times})


SHARES: frozenset[str] = frozenset()
"""Numbers of the policy that are no time."""

if __name__ == "__main__":
    agent.Policy = functools.partial(scaled, float(sys.argv.pop(1)))
    sys.exit(main())
