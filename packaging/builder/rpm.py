"""The staging tree as an RPM, made by rpmbuild."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from builder import scripts, staging
from builder.run import BuildError, run

SCRIPTLETS = ("pre", "preun", "postun", "posttrans")
"""All in plain shell. No ``post``: the old version's files go only after it, so what starts the agent is posttrans."""


def build(
    root: Path,
    sources: Path,
    work: Path,
    output: Path,
    env: Mapping[str, str],
    *,
    identity: staging.Identity,
    payload: str,
) -> Path:
    """Make the package from a settled staging tree.

    Args:
        root: The tree as it will stand below ``/``.
        sources: Folder of ``garrison.spec`` and the scriptlets.
        work: Folder for rpmbuild's own tree.
        output: Where the package goes.
        env: From `run.environment`; its SOURCE_DATE_EPOCH is the time of everything.
        identity: What it says of itself.
        payload: rpmbuild's name of the compression, such as ``w6.xzdio``.

    Raises:
        BuildError: rpmbuild refused.
    """
    machine = staging.architecture()
    top = work / "rpm"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    (top / "files").write_text("".join(_listed(root, path) for path in staging.entries(root)), encoding="utf-8")
    scriptlets = {
        name.upper(): scripts.render(sources / name, identity.marks).replace("%", "%%") for name in SCRIPTLETS
    }
    facts = {
        "VERSION": identity.version,
        "GLIBC": identity.glibc,
        "PAYLOAD": payload,
        "ROOT": str(root),
        "FILES": str(top / "files"),
    }
    spec = scripts.render(sources / "garrison.spec", {**facts, **scriptlets})
    (top / "garrison.spec").write_text(spec, encoding="utf-8")
    # A home of its own: the caller's ~/.rpmmacros and ~/.rpmrc would be input that nobody sees.
    quiet = {**env, "HOME": str(top)}
    run(["rpmbuild", "-bb", "--quiet", "--target", machine, "--define", f"_topdir {top}", top / "garrison.spec"], quiet)
    built = list((top / "RPMS").rglob("*.rpm"))
    if len(built) != 1:
        raise BuildError(f"rpmbuild made {len(built)} packages instead of one")
    output.mkdir(parents=True, exist_ok=True)
    package = output / built[0].name
    partial = package.with_suffix(".part")
    shutil.copyfile(built[0], partial)
    partial.replace(package)
    return package


def _listed(root: Path, path: Path) -> str:
    if (root / path).is_dir() and not (root / path).is_symlink():
        return f"%dir /{path}\n"
    escaped = str(path).replace("%", "%%")
    if path.is_relative_to("etc"):
        return f"%config(noreplace) /{escaped}\n"
    return f"/{escaped}\n"
