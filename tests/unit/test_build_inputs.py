"""What a package build is made from: anything that changes makes another digest, and nothing else does."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "packaging"))
from builder import inputs

ENV = {"PATH": os.environ.get("PATH", os.defpath), "SOURCE_DATE_EPOCH": "1", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("supervisor/agent.py", "packaging/deb/postinst", "pyproject.toml", "docs/other.md"):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "checkout"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda top: (top / "docs/other.md").write_text("goes into no package"), True),
        (lambda top: (top / "supervisor/__pycache__").mkdir(), True),
        (lambda top: os.utime(top / "pyproject.toml", (1, 1)), True),
        (lambda top: (top / "pyproject.toml").write_text("other"), False),
        (lambda top: (top / "supervisor/more.py").write_text(""), False),
        (lambda top: (top / "supervisor/agent.py").rename(top / "supervisor/agents.py"), False),
        (lambda top: (top / "packaging/deb/postinst").chmod(0o755), False),
    ],
    ids=("other file", "compiled", "time", "content", "new file", "renamed", "mode"),
)
def test_the_digest_is_of_the_files_that_go_in(checkout: Path, change: Callable[[Path], None], *, same: bool) -> None:
    before = inputs.digest(checkout, ENV, "xz")
    change(checkout)
    assert (inputs.digest(checkout, ENV, "xz") == before) is same


def test_the_digest_is_of_options_and_of_the_time_that_stands_in_everything(checkout: Path) -> None:
    made = {inputs.digest(checkout, env, option) for env in (ENV, ENV | {"SOURCE_DATE_EPOCH": "2"}) for option in "ab"}
    assert len(made) == 4


def test_packages_are_those_of_the_last_build_only_byte_for_byte(tmp_path: Path) -> None:
    record, package, library = tmp_path / "record", tmp_path / "dist" / "one.deb", tmp_path / "lib.so"
    package.parent.mkdir()
    package.write_bytes(b"package")
    library.write_bytes(b"library")
    assert not inputs.unchanged(record, "digest", package.parent)
    sums = hashlib.sha256(b"package").hexdigest() + "  one.deb\n"
    inputs.remember(record, "digest", sums, [library])
    assert inputs.unchanged(record, "digest", package.parent)
    assert not inputs.unchanged(record, "other", package.parent)
    library.write_bytes(b"updated")
    assert not inputs.unchanged(record, "digest", package.parent)
    library.write_bytes(b"library")
    package.write_bytes(b"damaged")
    assert not inputs.unchanged(record, "digest", package.parent)
    package.unlink()
    assert not inputs.unchanged(record, "digest", package.parent)
