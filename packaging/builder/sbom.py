"""The software bill of materials: what is inside, in CycloneDX 1.5 as JSON."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import urllib.parse
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builder import deb, interpreter
from builder.run import owner_of, run, say

NAME = "sbom.cdx.json"

Component = dict[str, Any]

_NAMESPACE = uuid.UUID("6d1f2b0e-6a39-5f8e-9b0c-3a5f4d2c7e11")
_LICENCE_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST_NAME = 60
"""Characters; a longer licence field holds the licence's text."""


def make(
    version: str,
    base: interpreter.Facts,
    prefix: Path,
    packages: Path,
    libraries: dict[str, Path],
    env: dict[str, str],
) -> str:
    """Return the bill of a staged tree. The same tree gives the same text.

    Args:
        version: Garrison's.
        base: The interpreter inside.
        prefix: The staged /opt/garrison.
        packages: Its folder of Python packages.
        libraries: Where each shared library was copied from, by its name.
        env: From `run.environment`.
    """
    components = [
        _interpreter(base),
        *_distributions(packages),
        *(_library(prefix / "lib" / name, source, base, env) for name, source in sorted(libraries.items())),
    ]
    components.sort(key=lambda component: str(component["bom-ref"]))
    subject = {
        "type": "application",
        "bom-ref": "garrison",
        "name": "garrison",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    inside = [str(component["bom-ref"]) for component in components]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(env["SOURCE_DATE_EPOCH"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject,
        },
        "components": components,
        "dependencies": [{"ref": "garrison", "dependsOn": inside}, *({"ref": ref} for ref in inside)],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(bill, sort_keys=True))
    head = {"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "serialNumber": f"urn:uuid:{serial}"}
    return json.dumps({**head, **bill}, indent=2) + "\n"


def _interpreter(base: interpreter.Facts) -> Component:
    return {
        "type": "application",
        "bom-ref": f"cpython@{base.version}",
        "name": "cpython",
        "version": base.version,
        "purl": f"pkg:generic/cpython@{base.version}",
        "cpe": f"cpe:2.3:a:python:python:{base.version}:*:*:*:*:*:*:*",
        "licenses": [{"license": {"id": "Python-2.0"}}],
    }


def _distributions(packages: Path) -> list[Component]:
    found = []
    for distribution in importlib.metadata.distributions(path=[str(packages)]):
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if name == "garrison":
            continue
        purl = f"pkg:pypi/{name}@{distribution.version}"
        component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": distribution.version}
        component["purl"] = purl
        licences = _licences(distribution)
        if licences:
            component["licenses"] = licences
        else:
            say(f"warning: {name} does not say its licence; look it up before the package is given to others")
        found.append(component)
    return found


def _licences(distribution: importlib.metadata.Distribution) -> list[dict[str, Any]]:
    told = distribution.metadata
    (expression,) = told.get_all("License-Expression") or ("",)
    if expression:
        return [{"expression": expression}]
    (text,) = told.get_all("License") or ("",)
    if text and "\n" not in text and len(text) <= _LONGEST_NAME:
        return [{"license": {"name": text}}]
    classifiers = told.get_all("Classifier") or []
    names = {line.removeprefix(_LICENCE_CLASSIFIER) for line in classifiers if line.startswith(_LICENCE_CLASSIFIER)}
    return [{"license": {"name": name}} for name in sorted(names)]


def _library(path: Path, source: Path, base: interpreter.Facts, env: dict[str, str]) -> Component:
    component: Component = {
        "type": "library",
        "bom-ref": path.name,
        "name": path.name,
        # As it is in the package: stripped, with another search path.
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
    }
    owner = owner_of(source, env)
    if path.name.startswith("libpython"):
        component["version"] = base.version
    elif owner:
        version = run(["dpkg-query", "-W", "-f", "${Version}\n", owner], env).splitlines()[0]
        release = platform.freedesktop_os_release()
        system, number = release.get("ID", "debian"), release.get("VERSION_ID", "")
        quoted = urllib.parse.quote(version, safe=".-~")
        component["version"] = version
        component["purl"] = f"pkg:deb/{system}/{owner}@{quoted}?arch={deb.architecture()}&distro={system}-{number}"
    return component
