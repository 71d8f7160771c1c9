"""The disk that the machines boot from: a small Debian, made once with debootstrap and kept below ``build/vm``."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.debian import unpack
from tests.vm import initramfs

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "vm"
SUITE = "bookworm"
PACKAGES = ("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "rpm")
"""What a server has beside Debian's minimum, and the rpm tool. No Python: the package has its own."""
INSIDE = ("control", "vm-control.service")
"""What of ``guest/`` is in the image; the rest is on the machines' second disk."""
MASKED = (
    *("getty@tty1.service", "serial-getty@ttyS0.service", "serial-getty@ttyS1.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-timesyncd.service"),
    # The initramfs has loaded the drivers, mounted the disks and set the address. What is below would come to the
    # same, in half of a boot's time, or is for sessions that nobody has here.
    *("systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket"),
    *("systemd-udev-trigger.service", "systemd-modules-load.service", "modprobe@.service", "kmod-static-nodes.service"),
    *("systemd-networkd.service", "systemd-networkd.socket", "systemd-network-generator.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-logind.service", "systemd-user-sessions.service", "systemd-random-seed.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
)
"""Units that no machine starts: what would disturb, and what takes seconds and has nothing to do with the agent."""
DISK_BYTES = 1 << 31
NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "mount": "mount",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}


class MissingError(Exception):
    """The image cannot be made here; the text says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots from.

    Attributes:
        disk: A raw disk with one ext4 file system. Machines write to copies of it only.
        kernel: Debian's cloud kernel.
        initrd: See `initramfs`.
        release: The kernel's version.
    """

    disk: Path
    kernel: Path
    initrd: Path
    release: str


def require() -> None:
    """Check for the programs that are needed.

    Raises:
        MissingError: One is not here, or this is not root.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in NEEDED.items() if shutil.which(program, path=path) is None})
    if missing:
        raise MissingError(f"missing: apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid() != 0:
        raise MissingError("debootstrap needs root")


def get() -> Image:
    """Return the image; make it where there is none of the present recipe.

    Raises:
        MissingError: It cannot be made.
    """
    require()
    recipe = [HERE / "image.py", HERE / "initramfs.py", *(HERE / "guest" / name for name in INSIDE)]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in recipe)).hexdigest()[:16]
    images = BUILD / "images"
    folder = images / key
    images.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
        if not (folder / "disk").exists():
            with tempfile.TemporaryDirectory(dir=images, prefix="making-") as made:
                _make(Path(made) / "image")
                os.rename(Path(made) / "image", folder)
            for other in images.iterdir():
                if other != folder:
                    shutil.rmtree(other)
    release = (folder / "release").read_text()
    return Image(folder / "disk", folder / "kernel", folder / "initrd", release)


def with_package(image: Image, deb: Path, target: Path) -> Image:
    """Return the same image with a package installed as an image build does it: in a chroot, without systemd.

    Args:
        image: Stays as it is.
        deb: The package.
        target: The new disk; what dpkg said is beside it, in ``.log``.

    Raises:
        MissingError: It could not be installed.
    """
    copy(image.disk, target)
    with mounted(target) as root:
        inside = root / "root" / "garrison.deb"
        shutil.copy(deb, inside)
        _run(
            "chroot", str(root), "dpkg", "--force-unsafe-io", "-i", "/root/garrison.deb", log=target.with_suffix(".log")
        )
        inside.unlink()
    return replace(image, disk=target)


def copy(disk: Path, target: Path) -> None:
    """Copy a disk, without its holes."""
    subprocess.run(["cp", "--reflink=auto", disk, target], check=True, timeout=300)


@contextlib.contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """Mount a disk that no machine uses, for as long as the block runs; gives the folder.

    Raises:
        MissingError: It cannot be mounted.
    """
    with tempfile.TemporaryDirectory(dir=BUILD) as made:
        root = Path(made) / "root"
        root.mkdir()
        _run("mount", "-o", "loop", str(disk), str(root))
        try:
            yield root
        finally:
            _run("umount", str(root))


def _make(folder: Path) -> None:
    root, kernel = folder / "root", folder / "linux"
    folder.mkdir()
    sys.stdout.write(f"Making the image: {SUITE} by debootstrap (once) ...\n")
    sys.stdout.flush()
    packages = BUILD / "debs"
    packages.mkdir(exist_ok=True)
    _run(
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--cache-dir={packages}"),
        *(SUITE, str(root), _mirror()),
        log=folder / "debootstrap.log",
    )
    if problem := unpack((_kernel_package(), "busybox-static"), kernel):
        raise MissingError(problem)
    (modules,) = (kernel / "lib/modules").iterdir()
    shutil.copytree(kernel / "lib/modules", root / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)
    _run("chroot", str(root), "depmod", modules.name)
    _configure(root)
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(root), "-F", str(folder / "disk"), f"{DISK_BYTES // 1024}k")
    shutil.copyfile(kernel / f"boot/vmlinuz-{modules.name}", folder / "kernel")
    initramfs.build(folder / "initrd", kernel / "bin/busybox", modules)
    (folder / "release").write_text(modules.name)
    shutil.rmtree(root)
    shutil.rmtree(kernel)


def _configure(root: Path) -> None:
    for name, content in {
        "etc/hostname": "vm\n",
        "etc/hosts": "127.0.0.1 localhost vm\n",
        "etc/fstab": "",
        # Not a first boot, which would go through all units' presets.
        "etc/machine-id": f"{hashlib.sha256(b'garrison').hexdigest()[:32]}\n",
    }.items():
        (root / name).write_text(content)
    shutil.copy(HERE / "guest/control", root / "usr/local/sbin/vm-control")
    (root / "usr/local/sbin/vm-control").chmod(0o755)
    shutil.copy(HERE / "guest/vm-control.service", root / "etc/systemd/system/vm-control.service")
    systemctl = ("systemctl", f"--root={root}", "--quiet")
    _run(*systemctl, "enable", "vm-control.service")
    _run(*systemctl, "set-default", "multi-user.target")
    _run(*systemctl, "mask", *MASKED)
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
        for each in (root / folder).iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def _mirror() -> str:
    """Return the first address that apt itself takes this suite's packages from."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in asked.stdout.splitlines():
        suite, _, site = line.partition(" ")
        if suite == SUITE and site:
            return site
    raise MissingError(f"apt knows no source of {SUITE}; the image is made of Debian's packages")


def _kernel_package() -> str:
    asked = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=False
    )
    for line in asked.stdout.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends":
            return name
    raise MissingError("apt knows no linux-image-cloud-amd64 (apt-get update)")


def _run(*command: str, log: Path | None = None) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise MissingError(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    sys.stdout.write(f"{get()}\n")
