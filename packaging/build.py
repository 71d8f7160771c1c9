#!/usr/bin/env python3
"""Builds the packages: one staging tree with an interpreter of its own below /opt/garrison, and a DEB from it.

Run it with the Python of the project's environment (`make packages`); that environment's base interpreter is
the one that is bundled. docs/packaging.md says why it is done like this.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

from builder import deb, elf, interpreter, project
from builder.run import BuildError, environment, require, run

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PREFIX = Path("opt/garrison")
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


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Build, and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the Garrison packages.")
    parser.add_argument("--work", type=Path, default=CHECKOUT / "build" / "packages", help="folder for what is between")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "dist", help="folder for the packages")
    parser.add_argument("--compression", default="-Zxz -z6", help="options of dpkg-deb for it (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        build(arguments.work.resolve(), arguments.output.resolve(), arguments.compression)
    except BuildError as error:
        sys.stderr.write(f"packaging: {error}\n")
        return 1
    return 0


def build(work: Path, output: Path, compression: str) -> None:
    """Go through all steps.

    Raises:
        BuildError: One failed; the text says which and what to do.
    """
    started = time.monotonic()
    require("dpkg-deb", "ldd", "objdump", "strip")
    os.umask(0o022)
    env = environment(project.epoch(CHECKOUT))
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

    host_files(root)
    documents(root, base, {**origins, **foreign}, env)
    sizes = measure(prefix, library, packages)
    package = deb.build(root, HERE / "deb", output, env, version=version, glibc=floor.text, compression=compression)
    for part, size in sizes.items():
        say(f"  {part:<28}{size / 1e6:8.1f} MB")
    say(f"package       {package.name}  {package.stat().st_size / 1e6:.1f} MB")
    say(f"sha256        {hashlib.sha256(package.read_bytes()).hexdigest()}")
    say(f"took          {time.monotonic() - started:.0f} s")


def host_files(root: Path) -> None:
    """Put what stands outside of /opt/garrison, and the two programs, into the tree."""
    for name, link in (("garrisond", "usr/sbin/garrisond"), ("garrison", "usr/bin/garrison")):
        program = root / PREFIX / "bin" / name
        shutil.copyfile(HERE / "files" / name, program)
        program.chmod(0o755)
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(f"/{PREFIX}/bin/{name}")
    for source, target in (
        (HERE / "files" / "garrison.toml", "etc/garrison/garrison.toml"),
        (CHECKOUT / "systemd" / "garrison.service", "lib/systemd/system/garrison.service"),
    ):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / target)
    (root / "etc/garrison/store").mkdir()


def documents(root: Path, base: interpreter.Facts, libraries: dict[str, Path], env: dict[str, str]) -> None:
    """Put the changelog and the licences of everything inside into the tree.

    Those of the dependencies stay where their wheels have them, in ``*.dist-info``.
    """
    folder = root / "usr/share/doc/garrison"
    folder.mkdir(parents=True)
    changes = (CHECKOUT / "CHANGELOG.md").read_bytes()
    (folder / "changelog.gz").write_bytes(gzip.compress(changes, 9, mtime=0))
    lines = [
        "Garrison is licensed under the Apache License 2.0; its text is in LICENSE beside this file.",
        "",
        "Inside /opt/garrison are also, under licences of their own:",
        f"- CPython {base.version}: licenses/python",
    ]
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")
    licenses = folder / "licenses"
    licenses.mkdir()
    own = (base.stdlib / "LICENSE.txt", base.stdlib / "LICENSE")
    found = next((path for path in own if path.is_file()), None)
    if found is None:
        raise BuildError(f"CPython's licence is not in {base.stdlib}; it has to be in the package")
    shutil.copyfile(found, licenses / "python")
    for name, source in sorted(libraries.items()):
        text = _licence_of(source, env)
        if text is not None:
            shutil.copyfile(text, licenses / name)
            lines.append(f"- {name}: licenses/{name}")
        elif source.name.startswith("libpython"):
            continue
        else:
            say(f"warning: no licence text found for {source}: add it before the package is given to others")
    lines += ["- the Python packages: *.dist-info in the library folder", ""]
    (folder / "copyright").write_text("\n".join(lines), encoding="utf-8")


def _licence_of(library: Path, env: dict[str, str]) -> Path | None:
    if shutil.which("dpkg", path=env["PATH"]) is None:
        return None
    names = {library, library.resolve()}
    names |= {Path("/", *name.parts[2:]) for name in names if name.is_relative_to("/usr")}
    for name in sorted(names):
        # 1: no package has a file of this name.
        owner = run(["dpkg", "-S", name], env, accept=1).partition(":")[0]
        text = Path("/usr/share/doc", owner, "copyright")
        if owner and text.is_file():
            return text
    return None


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
