"""Settings: typed, ranged and documented in `schema`, read by `load`."""

from garrison.supervisor.settings.checks import keep_fixed, needs_restart
from garrison.supervisor.settings.load import aggregate_from, budget_from, load
from garrison.supervisor.settings.problems import ConfigurationError, Problem
from garrison.supervisor.settings.schema import AggregateBudget, Budget, Pressure, Settings, Worker

__all__ = [
    "AggregateBudget",
    "Budget",
    "ConfigurationError",
    "Pressure",
    "Problem",
    "Settings",
    "Worker",
    "aggregate_from",
    "budget_from",
    "keep_fixed",
    "load",
    "needs_restart",
]
