"""Later versions of the built packages, good and broken ones, and a host under a real systemd to install them on."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration._package_support import CHECKOUT, EPOCH, Built
from tests.integration._systemd_box import SystemdBox, need_box

sys.path.append(str(CHECKOUT / "packaging"))
from builder import deb, rpm, run, staging

SITE = "opt/garrison/lib/python3.*/*-packages/garrison"
INSTALL = {"deb": "dpkg --install /shared/{}.deb", "rpm": "rpm --upgrade --oldpackage --nodeps /shared/{}.rpm"}
REMOVE = {"deb": "dpkg --purge garrison", "rpm": "rpm --erase garrison"}


def edit(root: Path, pattern: str, old: str, new: str) -> None:
    """Change a file of the tree, and its compiled form, which is never compared with it."""
    (path,) = root.glob(pattern)
    text = path.read_text()
    assert old in text, f"{path} has changed: {old!r} is not in it"
    # The file is a link to that of the tree that was built.
    mode = path.stat().st_mode
    path.unlink()
    path.write_text(text.replace(old, new, 1))
    path.chmod(mode)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), str(compiled), f"/{path.relative_to(root)}", True, invalidation_mode=unchecked)


def newer(root: Path) -> None:
    edit(root, f"{SITE}/supervisor/version.py", 'VERSION = "', 'VERSION = "9.')


def refuses(root: Path) -> None:
    """It cannot even look at its configuration."""
    edit(root, "opt/garrison/bin/garrisond", "import sys\n", "import sys\n\nsys.exit('no such library')\n")


def module_fails(root: Path) -> None:
    """It starts, and one worker's module raises."""
    edit(root, f"{SITE}/workers/files/module.py", "def init(self", "def no_init(self")
    edit(
        root,
        f"{SITE}/workers/files/module.py",
        "def no_init(self",
        "def init(self, *_: object) -> None:\n        raise RuntimeError('broken by the test')\n\n    def no_init(self",
    )


def dies(root: Path) -> None:
    """It starts, says that it is ready, and ends after a while."""
    edit(
        root,
        "opt/garrison/bin/garrisond",
        "import sys\n",
        "import os\nimport sys\nimport threading\n\n"
        "if len(sys.argv) == 1:\n    threading.Timer(3, os._exit, [9]).start()\n",
    )


def unit_is_broken(root: Path) -> None:
    """Its unit starts something that is not there."""
    edit(root, "usr/lib/systemd/system/garrison.service", "ExecStart=", "ExecStart=/nonexistent")


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "good": ("9.0.0", newer),
    "refuses": ("9.1.0", refuses),
    "module-fails": ("9.2.0", module_fails),
    "dies": ("9.3.0", dies),
    "unit": ("9.4.0", unit_is_broken),
}


class Versions:
    """The built packages and changed ones of later versions, made when they are asked for."""

    def __init__(self, built: Built, folder: Path) -> None:
        self._built = built
        self.folder = folder
        shutil.copyfile(built.package, folder / "first.deb")
        shutil.copyfile(built.rpm, folder / "first.rpm")

    def need(self, name: str, family: str) -> None:
        """Make a package unless it is there."""
        package = self.folder / f"{name}.{family}"
        if package.exists():
            return
        version, change = CHANGES[name]
        root = self.folder / f"{name}-{family}"
        shutil.copytree(self._built.root, root, symlinks=True, copy_function=os.link)
        change(root)
        (root / "opt/garrison/MANIFEST").unlink()
        staging.write_manifest(root / "opt/garrison")
        host_files = "usr/lib/systemd/system/garrison.service usr/lib/systemd/system/garrison.slice"
        marks = {"VERSION": version, "USER": "garrison-worker", "HOST_FILES": host_files}
        identity = staging.Identity(version, self._built.report.partition("\nglibc")[2].split()[0], marks)
        env = run.environment(EPOCH)
        scripts = CHECKOUT / "packaging" / family
        if family == "deb":
            made = deb.build(root, scripts, self.folder, env, identity=identity, compression="-Znone")
        else:
            work = self.folder / "work"
            staging.settle(root, EPOCH)
            made = rpm.build(root, scripts, work, self.folder, env, identity=identity, payload="w.ufdio")
            shutil.rmtree(work)
        made.replace(package)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def versions(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    need_box()
    folder = tmp_path_factory.mktemp("versions")
    yield Versions(built, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def box(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdBox]:
    folder = tmp_path_factory.mktemp("box")
    made = SystemdBox(folder, versions.folder)
    try:
        if why := made.boot():
            pytest.skip(why)
        yield made
    finally:
        made.close()


@dataclass(frozen=True, slots=True)
class Host:
    """The box with the first version installed and running."""

    box: SystemdBox
    versions: Versions
    family: str

    def install(self, name: str, *, fails: bool = False, options: str = "") -> str:
        """Install a version over the one that is there and return what was said."""
        if name != "first":
            self.versions.need(name, self.family)
        program, _, arguments = INSTALL[self.family].format(name).partition(" ")
        done = self.box.run(f"GARRISON_TAKEOVER_SECONDS=30 {program} {options} {arguments}")
        # rpm takes a scriptlet that fails this late for a warning.
        assert done.returncode == int(fails and self.family == "deb"), done.stdout
        assert not fails or "scriptlet failed" in done.stdout or self.family == "deb", done.stdout
        return done.stdout

    def status(self) -> dict[str, Any]:
        done = self.box.run("garrison status --json")
        assert done.returncode == 0, done.stdout
        return dict(json.loads(done.stdout))

    def running(self) -> list[str]:
        return sorted(worker["name"] for worker in self.status()["workers"] if worker["state"] == "running")

    def check_tree(self) -> None:
        """Every file of the version that runs is as it was built, and nothing else is there."""
        done = self.box.run(
            "cd /opt/garrison && sha256sum --check --quiet MANIFEST && cut -c 67- MANIFEST | sort > /tmp/listed"
            " && find . -type f ! -name MANIFEST ! -name .refused | sort | diff /tmp/listed -"
            " && ls -A /opt | grep garrison"
        )
        assert (done.returncode, done.stdout) == (0, "garrison\n")


thorough = pytest.mark.skipif(not os.environ.get("GARRISON_FULL"), reason="takes minutes: GARRISON_FULL=1 runs it")
deb_only = pytest.mark.parametrize("host", ["deb"], indirect=True)
deb_first = pytest.mark.parametrize("host", ["deb", pytest.param("rpm", marks=thorough)], indirect=True)
"""The scripts of both families are put together from the same parts."""


@pytest.fixture(params=["deb", "rpm"])
def host(request: pytest.FixtureRequest, box: SystemdBox, versions: Versions) -> Iterator[Host]:
    if shutil.which("dpkg" if request.param == "deb" else "rpm") is None:
        pytest.skip(f"the {request.param} tools are not installed")
    made = Host(box, versions, request.param)
    try:
        # A busy machine is a busy host, and a worker that gives way to it does not run.
        box.run(
            "mkdir -p /etc/garrison && echo '[agent]\npressure = {cpu_percent = 100, io_percent = 100,"
            " memory_percent = 100}' > /etc/garrison/garrison.toml"
        )
        done = box.run(INSTALL[made.family].format("first").replace("dpkg", "dpkg --force-confold"))
        assert done.returncode == 0, done.stdout
        active = box.run("systemctl is-active garrison").stdout.strip()
        assert active == "active", done.stdout + box.run("systemctl status garrison; journalctl -u garrison").stdout
        assert made.running() == ["files", "process"]
        yield made
    finally:
        box.run(f"{REMOVE[made.family]}; rm -rf /etc/garrison /var/lib/garrison /var/log/garrison")
