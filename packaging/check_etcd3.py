#!/usr/bin/env python3
"""Checks the pinned ``cslab-etcd3`` wheel again: ``python packaging/check_etcd3.py [WHEEL]``. See docs/dependencies.md.

Without a wheel the installed files are looked at. Nothing of the package is run.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import zipfile
from importlib import metadata
from pathlib import Path

NAME, VERSION = "cslab-etcd3", "0.12.1"

FILES = {
    "etcd3/__init__.py": "ea0c6433017afb0324c079402869ee18ed249205fa0b300300c31e9848211a7f",
    "etcd3/client.py": "4f28df9fe5f15fa966150f231e9d310322536bd9c335843a1980cf81f5ef8f27",
    "etcd3/etcdrpc/__init__.py": "ac077d9b15ca592320eee9b49a1a2cb994b6200e0d7138251be406368024ed89",
    "etcd3/etcdrpc/auth_pb2.py": "ccd313932200ed8b6e15da8538f0549d8d2cfc8c716f8c73ae8a53d38d543b58",
    "etcd3/etcdrpc/kv_pb2.py": "6de5041c8ec7a3ec9b5583c1dc73f1c2f9a699f5f8af7c7d3d265a4cb41b0dd9",
    "etcd3/etcdrpc/rpc_pb2.py": "67553f5bc81d7c73c3ea9e2a28c9ad74e4644b6045dc0d2611f503ecacdfd099",
    "etcd3/etcdrpc/rpc_pb2_grpc.py": "2eddf718c020d82f3d2508ae750c1e30a9c2bc76841d180240217049abd0ce6c",
    "etcd3/events.py": "6b64a0896824764f6c022d3fa846553026ca74c4fade237551fb14d9f9a72ca9",
    "etcd3/exceptions.py": "9a98300c5deeb276c48c662deb9e360b5924850fe83c2cf62401c5c3250f91cb",
    "etcd3/leases.py": "61c37d8a997f106d335032d68ea686fac7f807be0af167f08d76ff51ab8dcde8",
    "etcd3/locks.py": "35b2f054d3f2f5b1a8f145824878532dd815c295e65b22caa21fd235f48881c8",
    "etcd3/members.py": "0bde00c1911a1dce9bd0b14f45611414dcf28d8a56038ffc6f6fce5e1ed40e72",
    "etcd3/transactions.py": "4f10931c6059e842a66265965b2217cc45c76866bbc55830267f1ee472b87291",
    "etcd3/utils.py": "d0aee870fc8a43024db131596cc0b1c55b2da14c11fb2e911a70a539b0cae562",
    "etcd3/watch.py": "dbb23083cfe264d2690f70c38e8dc951019ab1f6caf3214b450089015e61cf07",
}
"""SHA-256 of every Python file, as it was when it was read."""

ALLOWED = {"__future__", "etcd3", "functools", "google", "grpc", "logging", "random", "six", "threading", "time"}
ALLOWED |= {"uuid"}
"""What the files may import: nothing that starts a program, loads code or opens a connection beside gRPC."""

CALLS = {"eval", "exec", "compile", "__import__", "open"}


def main(arguments: list[str]) -> int:
    """Print what differs from what was checked; 1 if anything does, or there is nothing to check."""
    try:
        sources = from_wheel(arguments[0]) if arguments else installed()
    except (OSError, zipfile.BadZipFile, metadata.PackageNotFoundError) as error:
        what = arguments[0] if arguments else f"the installed package {NAME}"
        sys.stderr.write(f"{what} cannot be read: {error}\n")
        return 1
    problems = list(differences(sources))
    for name, source in sorted(sources.items()):
        problems += judge(name, source)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems:
        sys.stdout.write(f"{NAME} {VERSION}: {len(sources)} files are those that were checked\n")
    return bool(problems)


def from_wheel(path: str) -> dict[str, bytes]:
    """Return the Python files of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".py")}


def installed() -> dict[str, bytes]:
    """Return the Python files of the installed package."""
    files = metadata.distribution(NAME).files or []
    return {str(file): Path(str(file.locate())).read_bytes() for file in files if file.suffix == ".py"}


def differences(sources: dict[str, bytes]) -> list[str]:
    """Return in which files the package differs from the one that was checked."""
    found = [f"{name}: is missing" for name in sorted(FILES.keys() - sources.keys())]
    for name, source in sorted(sources.items()):
        if hashlib.sha256(source).hexdigest() != FILES.get(name):
            found.append(f"{name}: is not the file that was checked")
    return found


def judge(name: str, source: bytes) -> list[str]:
    """Return what a file imports or calls that it has no business with."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""] if not node.level else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            # The client reads certificate files in one method, which Garrison does not call.
            if not (name == "etcd3/client.py" and node.func.id == "open"):
                found.append(f"{name}:{node.lineno}: calls {node.func.id}")
            continue
        else:
            continue
        found += [
            f"{name}:{node.lineno}: imports {module}" for module in modules if module.partition(".")[0] not in ALLOWED
        ]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
