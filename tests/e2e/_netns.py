"""Two network namespaces and a cable between them, made by a test and removed with it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from typing import Self

import pytest

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None,
    reason="needs root, ip and nsenter for network namespaces",
)


class Link:
    """See the module. Use it as a context manager.

    Attributes:
        near: Name of the one namespace.
        far: Name of the other.
        near_ip: The address in it.
        far_ip: The address in the other.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.near, self.far = f"gt{mark}a", f"gt{mark}b"
        self.near_ip, self.far_ip = "10.213.0.1", "10.213.0.2"

    def __enter__(self) -> Self:
        """Make everything; skips the test where this machine does not let it."""
        try:
            for name in (self.near, self.far):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self.near, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", self.far)
            for name, address in ((self.near, self.near_ip), (self.far, self.far_ip)):
                _ip("-n", name, "address", "add", f"{address}/30", "dev", "v0")
                _ip("-n", name, "link", "set", "v0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def drop(self) -> None:
        """Lose every packet that the far side sends, without a word to anybody."""
        _ip("-n", self.far, "route", "add", "blackhole", f"{self.near_ip}/32")

    def mend(self) -> None:
        """End what `drop` began."""
        _ip("-n", self.far, "route", "del", "blackhole", f"{self.near_ip}/32")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "Operation not" in done.stderr or "not supported" in done.stderr:
            pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr}")
