"""Copies the CPython that runs the build, without what an agent never uses."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from builder.run import BuildError, run

_FACTS = """
import json, os, sys, sysconfig
get = sysconfig.get_config_var
print(json.dumps({
    "version": sys.version.split()[0],
    "implementation": sys.implementation.name,
    "executable": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    "stdlib": os.path.realpath(os.path.dirname(os.__file__)),
    "dynload": get("DESTSHARED"),
    "sysconfigdata": sysconfig._get_sysconfigdata_name(),
    "variables": {name: get(name) for name in (
        "EXT_SUFFIX", "SOABI", "MULTIARCH", "Py_DEBUG", "Py_ENABLE_SHARED", "VERSION", "HOST_GNU_TYPE", "SIZEOF_VOID_P",
    )},
}))
"""

LEFT_OUT = (
    # Made for people who develop, install or teach Python
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "turtle.py",
    "tkinter",
    "lib2to3",
    "ensurepip",
    "venv",
    "distutils",
    "_distutils_*",
    "unittest",
    "doctest.py",
    "pydoc_data",
    "config-*",
    "antigravity.py",
    "this.py",
    "__phello__",
    "__hello__.py",
    # Terminal programs and servers that the agent is not
    "curses",
    "wsgiref",
    "xmlrpc",
    # The build machine's and the distributor's own
    "site-packages",
    "dist-packages",
    "sitecustomize.py",
    "usercustomize.py",
    "EXTERNALLY-MANAGED",
    "_sysconfigdata*",
    "__pycache__",
    "*.pyc",
    "lib-dynload",
    "*.a",
    "*.so",
)
"""Names in the standard library, at any depth."""

EXTENSIONS_LEFT_OUT = (
    "_test*",
    "_ctypes_test*",
    "_xx*",
    "xxlimited*",
    "_tkinter*",
    "_curses*",
    "readline*",
    "nis*",
    "ossaudiodev*",
    "audioop*",
    # Each of these would bring a library of its own: Berkeley DB or gdbm, libcrypt, libuuid (uuid does without)
    "_dbm*",
    "_gdbm*",
    "_crypt*",
    "_uuid*",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to know of an interpreter, as it says itself.

    Attributes:
        version: Such as ``3.11.7``.
        executable: The file, not a link to it.
        stdlib: Folder of the standard library.
        dynload: Folder of its extension modules.
        sysconfigdata: Name of the module with the variables of its build.
        variables: Those of them that still mean something on another machine.
    """

    version: str
    executable: Path
    stdlib: Path
    dynload: Path
    sysconfigdata: str
    variables: dict[str, str | int | None]

    @property
    def folder(self) -> str:
        """Name of the library folder: ``python3.11``."""
        return "python" + ".".join(self.version.split(".")[:2])


def facts(python: Path, env: dict[str, str]) -> Facts:
    """Ask an interpreter about the one that it is made from (its base, for a virtual environment).

    Raises:
        BuildError: It is none that can be bundled.
    """
    told = json.loads(run([python, "-I", "-c", _FACTS], env))
    if told["implementation"] != "cpython":
        raise BuildError(f"{python} is {told['implementation']}; only CPython can be bundled")
    return Facts(
        version=told["version"],
        executable=Path(told["executable"]),
        stdlib=Path(told["stdlib"]),
        dynload=Path(told["dynload"]),
        sysconfigdata=told["sysconfigdata"],
        variables=told["variables"],
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def left_out(_folder: str, names: list[str]) -> set[str]:
    """Return which names of a folder of the standard library are not copied (for `shutil.copytree`)."""
    return {name for name in names if _matches(name, LEFT_OUT)}


def stage(python: Facts, prefix: Path, customize: Path) -> Path:
    """Copy the interpreter below a prefix, where it finds itself by where its program is.

    Args:
        python: What to copy.
        prefix: Becomes `/opt/garrison`.
        customize: The `sitecustomize.py` of the bundle.

    Returns:
        The program.

    Raises:
        BuildError: The base has no extension modules where it says.
    """
    if not python.dynload.is_dir():
        raise BuildError(f"{python.executable} keeps no extension modules in {python.dynload}")
    program = prefix / "bin" / "python3"
    program.parent.mkdir(parents=True)
    shutil.copyfile(python.executable, program)
    program.chmod(0o755)
    library = prefix / "lib" / python.folder
    # Distributions link single files elsewhere (Debian: LICENSE.txt); what is bundled is the file.
    shutil.copytree(python.stdlib, library, ignore=left_out, symlinks=False, ignore_dangling_symlinks=True)
    (library / "lib-dynload").mkdir()
    for extension in sorted(python.dynload.glob("*.so")):
        if not _matches(extension.name, EXTENSIONS_LEFT_OUT):
            shutil.copyfile(extension, library / "lib-dynload" / extension.name)
    shutil.copyfile(customize, library / "sitecustomize.py")
    (library / f"{python.sysconfigdata}.py").write_text(_sysconfigdata(python), encoding="utf-8")
    return program


def _sysconfigdata(python: Facts) -> str:
    known = {name: value for name, value in sorted(python.variables.items()) if value is not None}
    return (
        '"""What still means something of the interpreter\'s build; the paths of that machine do not."""\n\n'
        f"build_time_vars = {json.dumps(known, indent=4, sort_keys=True)}\n"
    )


def packages_folder(program: Path, library: Path, env: dict[str, str]) -> Path:
    """Return where the staged interpreter looks for packages: Debian's looks elsewhere than CPython's own.

    Raises:
        BuildError: It looks in no folder of its own.
    """
    asked = run([program, "-I", "-B", "-c", "import json, site; print(json.dumps(site.getsitepackages()))"], env)
    for folder in json.loads(asked):
        if Path(folder).parent == library:
            return Path(folder)
    raise BuildError(f"{program} looks for packages outside of {library} only: {asked.strip()}")


def compile_all(program: Path, top: Path, root: Path, env: dict[str, str]) -> None:
    """Compile every module, as it will be found below the root directory.

    One process and a fixed order: the marks for shared objects in a .pyc depend on what the process has seen
    before. Unchecked hashes: no timestamp goes in, and an import compares nothing.
    """
    code = (
        "import compileall, py_compile, sys\n"
        "mode = py_compile.PycInvalidationMode.UNCHECKED_HASH\n"
        "sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, force=True, workers=1, maxlevels=64,"
        " stripdir=sys.argv[2], prependdir='/', invalidation_mode=mode))\n"
    )
    run([program, "-B", "-s", "-P", "-c", code, top, f"{root}{os.sep}"], env)
