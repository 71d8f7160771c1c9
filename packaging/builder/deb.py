"""The staging tree as a Debian package."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from builder.run import BuildError, run

SCRIPTS = ("postinst", "prerm", "postrm")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_CONTROL = """\
Package: garrison
Version: {version}
Architecture: {architecture}
Maintainer: The Garrison developers <garrison@localhost.invalid>
Installed-Size: {kibibytes}
Depends: libc6 (>= {glibc})
Recommends: ca-certificates
Section: admin
Priority: optional
Description: host-intrusion-detection agent that cannot hurt the host it protects
 Garrison runs each detection worker in a cgroup of its own, under CPU and
 memory caps that the kernel enforces. A worker that breaks its budget is
 stopped, waits and recovers by itself, while the others go on. Keys start, stop
 and configure every worker, and one killswitch empties the host of workers.
 .
 The package brings its own Python and all libraries, below /opt/garrison; of
 the host it uses the C library only.
"""


def architecture() -> str:
    """Return Debian's name of this machine's architecture.

    Raises:
        BuildError: Garrison is not built for it.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise BuildError(f"Garrison is built for {' and '.join(_ARCHITECTURES)}, not for {machine}")
    return _ARCHITECTURES[machine]


def settle(root: Path, epoch: int) -> int:
    """Give everything below a root the same owner-independent modes and one time.

    Returns:
        The size of all files, in bytes.
    """
    size = 0
    for folder, names, files in os.walk(root, topdown=False):
        for name in (*files, *names):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                runs = os.path.isdir(path) or os.stat(path).st_mode & 0o100
                os.chmod(path, 0o755 if runs else 0o644)
                size += 0 if os.path.isdir(path) else os.path.getsize(path)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (epoch, epoch))
    return size


def build(
    root: Path, sources: Path, output: Path, env: Mapping[str, str], *, version: str, glibc: str, compression: str
) -> Path:
    """Make the package from a staging tree.

    Args:
        root: The tree as it will stand below ``/``.
        sources: Folder of the maintainer scripts.
        output: Where the package goes.
        env: From `run.environment`; its SOURCE_DATE_EPOCH is the time of everything.
        version: The package's.
        glibc: The oldest that it runs on.
        compression: dpkg-deb's options for it, such as ``-Zxz -z6``.

    Raises:
        BuildError: dpkg-deb refused.
    """
    epoch = int(env["SOURCE_DATE_EPOCH"])
    kibibytes = (settle(root, epoch) + 1023) // 1024
    control = root / "DEBIAN"
    control.mkdir()
    machine = architecture()
    (control / "control").write_text(
        _CONTROL.format(version=version, architecture=machine, kibibytes=kibibytes, glibc=glibc), encoding="utf-8"
    )
    for name in SCRIPTS:
        shutil.copyfile(sources / name, control / name)
        (control / name).chmod(0o755)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in files if not path.is_relative_to(control)]
    configuration = [f"/{path.relative_to(root)}\n" for path in files if path.is_relative_to(root / "etc")]
    (control / "conffiles").write_text("".join(configuration), encoding="utf-8")
    sums = [f"{_md5(path)}  {path.relative_to(root)}\n" for path in files if not path.is_relative_to(root / "etc")]
    (control / "md5sums").write_text("".join(sums), encoding="utf-8")
    settle(root, epoch)
    output.mkdir(parents=True, exist_ok=True)
    package = output / f"garrison_{version}_{machine}.deb"
    # Beside it and renamed: an interrupted build leaves no half package under the real name.
    partial = package.with_suffix(".part")
    run(["dpkg-deb", "--root-owner-group", *compression.split(), "--build", root, partial], dict(env))
    partial.replace(package)
    return package


def _md5(path: Path) -> str:
    # The format of dpkg's list; it finds damage, it protects from nobody.
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
