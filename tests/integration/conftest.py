"""What several modules here share and is dear to make."""

from __future__ import annotations

from tests.integration._package_support import built
from tests.integration._versions import box, host, versions

__all__ = ["box", "built", "host", "versions"]
