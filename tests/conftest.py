"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Machines are shared: how long one example takes says nothing about whether it is right.
settings.register_profile("garrison", deadline=None)
settings.load_profile("garrison")
