"""The staging tree as a Debian package."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from builder import scripts, staging
from builder.run import run

SCRIPTS = ("preinst", "postinst", "prerm", "postrm")

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
    return staging.ARCHITECTURES[staging.architecture()]


def build(
    root: Path,
    sources: Path,
    output: Path,
    env: Mapping[str, str],
    *,
    identity: staging.Identity,
    compression: str,
) -> Path:
    """Make the package from a staging tree; the tree is as before afterwards.

    Args:
        root: The tree as it will stand below ``/``.
        sources: Folder of the maintainer scripts.
        output: Where the package goes.
        env: From `run.environment`; its SOURCE_DATE_EPOCH is the time of everything.
        identity: What it says of itself.
        compression: dpkg-deb's options for it, such as ``-Zxz -z6``.

    Raises:
        BuildError: dpkg-deb refused.
    """
    epoch = int(env["SOURCE_DATE_EPOCH"])
    kibibytes = (staging.settle(root, epoch) + 1023) // 1024
    listed = [path for path in staging.entries(root) if (root / path).is_file() and not (root / path).is_symlink()]
    machine = architecture()
    output.mkdir(parents=True, exist_ok=True)
    package = output / f"garrison_{identity.version}_{machine}.deb"
    # Beside it and renamed: an interrupted build leaves no half package under the real name.
    partial = package.with_suffix(".part")
    control = root / "DEBIAN"
    control.mkdir()
    try:
        (control / "control").write_text(
            _CONTROL.format(version=identity.version, architecture=machine, kibibytes=kibibytes, glibc=identity.glibc),
            encoding="utf-8",
        )
        for name in SCRIPTS:
            (control / name).write_text(scripts.render(sources / name, identity.marks), encoding="utf-8")
            (control / name).chmod(0o755)
        configuration = [f"/{path}\n" for path in listed if path.is_relative_to("etc")]
        (control / "conffiles").write_text("".join(configuration), encoding="utf-8")
        sums = [f"{_md5(root / path)}  {path}\n" for path in listed if not path.is_relative_to("etc")]
        (control / "md5sums").write_text("".join(sums), encoding="utf-8")
        staging.settle(root, epoch)
        # One thread: how many there are decides how xz cuts its blocks, and so the bytes.
        one = {**env, "DPKG_DEB_THREADS_MAX": "1"}
        run(["dpkg-deb", "--root-owner-group", *compression.split(), "--build", root, partial], one)
    finally:
        shutil.rmtree(control)
    partial.replace(package)
    return package


def _md5(path: Path) -> str:
    # The format of dpkg's list; it finds damage, it protects from nobody.
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
