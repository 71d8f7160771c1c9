#!/usr/bin/env python3
"""Builds the packages: one staging tree with an interpreter of its own below /opt/garrison, a DEB and an RPM from it.

Run it with the Python of the project's environment (`make packages`); that environment's base interpreter is
the one that is bundled. docs/packaging.md says why it is done like this.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from builder import deb, documents, elf, inputs, interpreter, project, rpm, sbom, staging
from builder.run import TOOLS, BuildError, environment, require, run, say

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PREFIX = Path("opt/garrison")
USER = "garrison-worker"
"""Whom workers run as that need no rights."""

HOST_FILES = {
    "usr/lib/systemd/system/garrison.service": "garrison.service",
    "usr/lib/systemd/system/garrison.slice": "garrison.slice",
    "usr/lib/sysusers.d/garrison.conf": "garrison.sysusers",
    "usr/lib/tmpfiles.d/garrison.conf": "garrison.tmpfiles",
}
"""What systemd reads, by where it stands on a host."""

RPM_FILES = {"usr/lib/systemd/system-preset/80-garrison.preset": "garrison.preset"}
"""The same for RPM hosts, where a service is enabled by presets. Debian's tools read none."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How the packages are compressed: dpkg-deb's options and rpmbuild's name of the same."""

    deb: str
    rpm: str


# xz and not zstd: rpm before 4.14 and dpkg before 1.21.18 cannot read the latter.
SMALL = Compression("-Zxz -z6", "w6.xzdio")
QUICK = Compression("-Zgzip -z1", "w1.gzdio")

SELF_TEST = """
import faulthandler, hashlib, pkgutil, importlib, setproctitle, sqlite3, ssl, sys, sysconfig
faulthandler.enable()
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED
assert hashlib.new("sha256", b"").hexdigest().startswith("e3b0c442")
assert sysconfig.get_path("purelib").startswith(sys.prefix), sysconfig.get_path("purelib")
import garrison
names = [m.name for m in pkgutil.walk_packages(garrison.__path__, "garrison.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
foreign = [path for path in sys.path if path and not path.startswith(sys.prefix)]
assert not foreign, foreign
print(len(names))
"""


def main() -> int:
    """Build, and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the Garrison packages.")
    parser.add_argument("--work", type=Path, default=CHECKOUT / "build" / "packages", help="folder for what is between")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "dist", help="folder for the packages")
    parser.add_argument("--quick", action="store_true", help="compress quickly and badly, to try the packages out")
    parser.add_argument("--reuse", action="store_true", help="keep the last packages if they would be the same")
    arguments = parser.parse_args()
    work, output = arguments.work.resolve(), arguments.output.resolve()
    try:
        with staging.locked(work):
            build(work, output, QUICK if arguments.quick else SMALL, reuse=arguments.reuse)
    except BuildError as error:
        sys.stderr.write(f"packaging: {error}\n")
        return 1
    return 0


def build(work: Path, output: Path, compression: Compression, *, reuse: bool) -> None:
    """Go through all steps.

    Args:
        work: Folder for what is between; made anew.
        output: Folder for the packages.
        compression: Theirs.
        reuse: Do nothing where the last build's packages are there and nothing has changed that they were made from.

    Raises:
        BuildError: A step failed; the text says which and what to do.
    """
    started = time.monotonic()
    require(*TOOLS)
    os.umask(0o022)
    env = environment(project.epoch(CHECKOUT))
    record = work.with_name(f"{work.name}.inputs")
    made_from = inputs.digest(CHECKOUT, env, compression.deb, compression.rpm)
    if reuse and inputs.unchanged(record, made_from, output):
        say(f"packages      as the last build left them in {output}: nothing that they are made from has changed")
        return
    record.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    prefix = root / PREFIX
    prefix.mkdir(parents=True)

    base = interpreter.facts(Path(sys.executable), env)
    say(f"interpreter   CPython {base.version} from {base.executable}")
    program = interpreter.stage(base, prefix, HERE / "files" / "sitecustomize.py")
    library = prefix / "lib" / base.folder
    project.install_tools(HERE / "tools.txt", work / "tools", env)
    patchelf = work / "tools" / "bin" / "patchelf"

    own = elf.elf_files(prefix)
    origins = elf.gather(own, prefix / "lib", env)
    for path in elf.elf_files(prefix):
        run(["strip", "--strip-unneeded", path], env)
        elf.set_search_path(path, prefix / "lib", patchelf, env)
    packages = interpreter.packages_folder(program, library, env)
    say(f"libraries     {', '.join(sorted(origins))}")

    wheel = project.build_wheel(CHECKOUT, work, env)
    project.install(CHECKOUT / "requirements" / "runtime.txt", wheel, packages, env)
    version = wheel.name.split("-")[1]
    foreign = elf.gather(elf.elf_files(packages), prefix / "lib", env)
    for name in foreign:
        run(["strip", "--strip-unneeded", prefix / "lib" / name], env)
        elf.set_search_path(prefix / "lib" / name, prefix / "lib", patchelf, env)
    for path in elf.elf_files(packages):
        if any(name in foreign for name in elf.libraries(path, env)):
            elf.set_search_path(path, prefix / "lib", patchelf, env)
    say(f"dependencies  {len(list(packages.glob('*.dist-info'))) - 1}, with Garrison {version} in {packages.name}")

    interpreter.compile_all(program, prefix / "lib", root, env)
    modules = run([program, "-I", "-c", SELF_TEST], env).strip()
    everything = elf.elf_files(prefix)
    count = elf.verify_closed(everything, root, env)
    floor = elf.glibc_floor(everything, root, env)
    say(f"checked       {modules} modules of ours import; {count} binaries need nothing from outside but glibc")
    say(f"glibc         {floor.text} or newer, because of {'; '.join(floor.decided_by[:3])}")

    programs(root)
    host_files(root, HOST_FILES)
    libraries = {**origins, **foreign}
    documents.stage(root, CHECKOUT, base, libraries, env)
    run([program, "-I", "-m", "garrison.fleet.manual", "--root", root], env)
    bill = sbom.make(version, base, prefix, packages, libraries, env)
    (prefix / sbom.NAME).write_text(bill, encoding="utf-8")
    staging.write_manifest(prefix)
    sizes = measure(prefix, library, packages)
    marks = {"VERSION": version, "USER": USER, "HOST_FILES": " ".join(HOST_FILES)}
    identity = staging.Identity(version, floor.text, marks)
    twin = work / "root-rpm"
    shutil.copytree(root, twin, symlinks=True)
    host_files(twin, RPM_FILES)
    staging.settle(twin, int(env["SOURCE_DATE_EPOCH"]))
    # Compressing is half of the time, and each does it in one thread.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(deb.build, root, HERE / "deb", output, env, identity=identity, compression=compression.deb)
        two = pool.submit(rpm.build, twin, HERE / "rpm", work, output, env, identity=identity, payload=compression.rpm)
        package, other = one.result(), two.result()
    beside = output / f"{package.stem}.cdx.json"
    beside.write_text(bill, encoding="utf-8")
    sums = staging.sums([package, other, beside])
    (output / "SHA256SUMS").write_text(sums, encoding="utf-8")
    inputs.remember(record, made_from, sums, libraries.values())
    for part, size in sizes.items():
        say(f"  {part:<28}{size / 1e6:8.1f} MB")
    for path in (package, other):
        say(f"package       {path.name}  {path.stat().st_size / 1e6:.1f} MB")
    for line in sums.splitlines():
        say(f"sha256        {line}")
    say(f"took          {time.monotonic() - started:.0f} s")


def programs(root: Path) -> None:
    """Put the two programs and the configuration into the tree."""
    for name, link in (("garrisond", "usr/sbin/garrisond"), ("garrison", "usr/bin/garrison")):
        program = root / PREFIX / "bin" / name
        shutil.copyfile(HERE / "files" / name, program)
        program.chmod(0o755)
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(f"/{PREFIX}/bin/{name}")
    configuration = root / "etc/garrison"
    (configuration / "store").mkdir(parents=True)
    shutil.copyfile(HERE / "files" / "garrison.toml", configuration / "garrison.toml")


def host_files(root: Path, files: dict[str, str]) -> None:
    """Put files of the folder ``systemd`` where they stand on a host."""
    for target, name in files.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / "systemd" / name, root / target)


def measure(prefix: Path, library: Path, packages: Path) -> dict[str, int]:
    """Return the size of each part in bytes, largest groups first, the sum at the end."""

    def size(path: Path) -> int:
        if path.is_file():
            return path.stat().st_size
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())

    dependencies = {path.name: size(path) for path in packages.iterdir() if not path.name.endswith(".dist-info")}
    ours = dependencies.pop("garrison", 0)
    whole = size(packages)
    largest = sorted(dependencies, key=lambda name: -dependencies[name])[:5]
    extensions = size(library / "lib-dynload")
    return {
        "python program, libpython": size(prefix / "bin/python3") + sum(map(size, prefix.glob("lib/libpython*"))),
        "other shared libraries": sum(size(path) for path in prefix.glob("lib/*.so*") if "libpython" not in path.name),
        "standard library": size(library) - whole - extensions,
        "its extension modules": extensions,
        "dependencies": whole - ours,
        **{f"  of that {name}": dependencies[name] for name in largest},
        "garrison": ours,
        "together": size(prefix),
    }


if __name__ == "__main__":
    sys.exit(main())
