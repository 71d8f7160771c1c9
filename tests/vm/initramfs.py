"""An initramfs that finds the disk and hands over to it: busybox, the kernel's modules, and a script."""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "crc16",
    "crc32c_generic",
    "libcrc32c",
    "mbcache",
    "jbd2",
    "ext4",
    "rng-core",
    "virtio-rng",
    "failover",
    "net_failover",
    "virtio_net",
)
"""In the order in which they are loaded; those that a kernel has built in are skipped."""

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
for module in {modules}; do /bin/busybox insmod /modules/$module || echo "no $module"; done
n=0
until [ -b /dev/vda ] || [ $n -ge 100 ]; do n=$((n + 1)); /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/media
# Nothing leads out of this network; it is for the ports that are forwarded from outside.
/bin/busybox ip address add 10.0.2.15/24 dev eth0
/bin/busybox ip link set eth0 up
/bin/busybox umount /proc
/bin/busybox mount -n -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


def build(target: Path, busybox: Path, modules: Path) -> None:
    """Write an initramfs.

    Args:
        target: Where.
        busybox: A static busybox.
        modules: ``/lib/modules/VERSION`` of the kernel.

    Raises:
        FileNotFoundError: A needed module is neither there nor built into the kernel.
    """
    found = {path.name.partition(".ko")[0]: path for path in sorted(modules.rglob("*.ko"))}
    builtin = {Path(line).stem for line in (modules / "modules.builtin").read_text().split()}
    files: dict[str, bytes] = {"bin/busybox": busybox.read_bytes()}
    loaded = []
    for name in MODULES:
        if name in found:
            files[f"modules/{name}.ko"] = found[name].read_bytes()
            loaded.append(f"{name}.ko")
        elif name not in builtin:
            raise FileNotFoundError(f"{modules} has no {name}")
    files["init"] = _INIT.format(modules=" ".join(loaded)).encode()
    target.write_bytes(gzip.compress(archive(("bin", "dev", "modules", "proc", "root"), files), 1, mtime=0))


def archive(folders: Iterable[str], files: Mapping[str, bytes]) -> bytes:
    """Return a cpio archive in the format that the kernel reads (``newc``); every file may be executed."""
    parts: list[bytes] = []
    for number, name in enumerate(folders, 1):
        parts.append(_entry(number, name, stat.S_IFDIR | 0o755, b""))
    for number, (name, content) in enumerate(files.items(), 1000):
        parts.append(_entry(number, name, stat.S_IFREG | 0o755, content))
    parts.append(_entry(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    # inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of the name, checksum: 8 hex digits each.
    encoded = os.fsencode(name) + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
