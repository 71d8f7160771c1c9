"""What several modules here share and is dear to make."""

from __future__ import annotations

from tests.integration._package_support import built

__all__ = ["built"]
