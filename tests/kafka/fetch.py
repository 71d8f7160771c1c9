"""Gets Apache Kafka with Maven into the user's cache, for the tests that need the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "3.9.1"
"""Needs Java 17 or newer, which is what Debian 12 has."""

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>garrison</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""


class MissingError(Exception):
    """Apache Kafka is not here; the text says how to get it."""


def folder() -> Path:
    """Return where the jars are, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "garrison-tests" / f"kafka-{VERSION}"


def jars() -> Path:
    """Return the folder of the jars.

    Raises:
        MissingError: Java or the jars are not here.
    """
    if shutil.which("java") is None:
        raise MissingError("needs Java 17 (apt-get install default-jre-headless)")
    if not (folder() / "complete").exists():
        raise MissingError("needs Apache Kafka: make test-kafka fetches it with Maven")
    return folder()


def fetch() -> Path:
    """Fetch Apache Kafka where it is not here yet; return the folder of the jars.

    Raises:
        MissingError: It cannot be had.
    """
    for program, package in (("java", "default-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            raise MissingError(f"missing: {program} (apt-get install {package})")
    target = folder()
    if (target / "complete").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        (Path(made) / "pom.xml").write_text(_POM)
        done = subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={made}/jars"],
            cwd=made,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode != 0:
            raise MissingError(f"Maven cannot fetch Apache Kafka {VERSION}: {(done.stdout + done.stderr)[-800:]}")
        (Path(made) / "jars" / "complete").touch()
        shutil.rmtree(target, ignore_errors=True)
        os.rename(Path(made) / "jars", target)
    return target


if __name__ == "__main__":
    try:
        sys.stdout.write(f"Apache Kafka {VERSION}: {fetch()}\n")
    except MissingError as error:
        sys.exit(str(error))
