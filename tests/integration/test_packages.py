"""DEB and RPM: how they are built, what is in them, and the agent that runs from the DEB."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, alive, needs_cgroups, until
from tests.integration._package_support import (
    CHECKOUT,
    EPOCH,
    Built,
    control_file,
    field,
    files_below,
    rpm_query,
)

OPT = Path("/opt/garrison")
PYTHON = OPT / "bin" / "python3"
CONFIG = Path("/etc/garrison/garrison.toml")
DEFAULT_PLACES = (OPT, CONFIG.parent, *(Path(f"/{name}/garrison") for name in ("var/lib", "var/log", "run")))
EMPTY = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def maintainer_scripts(built: Built) -> dict[str, str]:
    """Return every script of both packages, by family and name."""
    found = {f"deb {name}": control_file(built.package, name) for name in ("preinst", "postinst", "prerm", "postrm")}
    return found | {
        f"rpm {tag}": rpm_query(built.rpm, f"%{{{tag}}}") for tag in ("PREIN", "PREUN", "POSTUN", "POSTTRANS")
    }


def in_tree(built: Built, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the bundled interpreter where it was unpacked: it works from anywhere."""
    program = built.root / "opt/garrison/bin/python3"
    return subprocess.run(
        [program, "-I", *arguments], env=EMPTY | (env or {}), capture_output=True, text=True, timeout=60, check=False
    )


# The build


def test_the_same_input_gives_the_same_bytes_whatever_the_place_umask_zone_and_language(built: Built) -> None:
    made = {path.name: path.read_bytes() for path in built.folder.iterdir()}
    assert sorted(name.rpartition(".")[2] for name in made) == ["SHA256SUMS", "deb", "json", "rpm"]
    assert {path.name: path.read_bytes() == made[path.name] for path in built.again.iterdir()} == dict.fromkeys(
        made, True
    )


def test_the_checksums_beside_the_packages_are_theirs(built: Built) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=built.folder,
        env=EMPTY | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert checked == {path.name for path in built.folder.iterdir()} - {"SHA256SUMS"}


def test_the_build_tells_sizes_checksum_and_the_oldest_c_library(built: Built) -> None:
    assert re.search(r"^glibc +2\.\d+ or newer, because of \S+", built.report, re.MULTILINE)
    assert hashlib.sha256(built.package.read_bytes()).hexdigest() in built.report
    assert re.search(r"^  together +\d+\.\d MB$", built.report, re.MULTILINE)


def test_the_package_depends_on_the_c_library_that_it_was_found_to_need_and_on_nothing_else(built: Built) -> None:
    needed = re.search(r"^glibc +(\S+)", built.report, re.MULTILINE)
    assert needed
    assert field(built.package, "Depends") == f"libc6 (>= {needed[1]})"


def test_everything_belongs_to_root_has_one_time_and_is_writable_by_root_only(built: Built) -> None:
    listed = subprocess.run(
        ["dpkg-deb", "-c", built.package], capture_output=True, text=True, check=True, env=EMPTY | {"TZ": "UTC"}
    ).stdout.splitlines()
    assert len(listed) > 1000
    for line in listed:
        mode, owner, _, date, *_ = line.split()
        assert owner == "root/root", line
        assert mode[0] == "l" or mode in ("drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"), line
        assert date == "2023-11-14", f"not {EPOCH}: {line}"


def test_nothing_in_the_package_names_the_folder_it_was_built_in(built: Built) -> None:
    name = str(built.work).encode()
    files = [path for path in built.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if name in path.read_bytes()] == []


def test_the_maintainer_scripts_are_shell_and_the_configuration_is_a_conffile(built: Built) -> None:
    for script in maintainer_scripts(built).values():
        subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True)
    assert control_file(built.package, "conffiles").split() == [str(CONFIG)]
    assert "opt/garrison/bin/python3" in control_file(built.package, "md5sums")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_scripts_of_both_families(built: Built) -> None:
    for name, script in maintainer_scripts(built).items():
        # 2034, 2317: what is included is not used whole by every script.
        done = subprocess.run(
            ["shellcheck", "--shell=sh", "--exclude=SC2034,SC2317,SC2329,SC3013", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}"


def test_no_script_has_a_mark_left_that_nothing_stands_for(built: Built) -> None:
    for script in maintainer_scripts(built).values():
        assert not re.search(r"@[A-Z_]+@|#include", script)


def test_the_rpm_has_the_files_of_the_deb_and_the_preset_beside(built: Built) -> None:
    ours = {
        f"/{path.relative_to(built.root)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in built.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    preset = "/usr/lib/systemd/system-preset/80-garrison.preset"
    told = rpm_query(
        built.rpm, "[%{FILENAMES}\t%{FILEDIGESTS}\t%{FILEMODES:octal}\t%{FILEUSERNAME}:%{FILEGROUPNAME}\n]"
    )
    rows = [line.split("\t") for line in told.splitlines()]
    assert {name: digest for name, digest, *_ in rows if digest and name != preset} == ours
    assert preset in {name for name, *_ in rows}
    for name, _, mode, owner in rows:
        assert owner == "root:root", name
        assert mode in ("40755", "100755", "100644", "120777"), (name, mode)
    folders = {name for name, _, mode, _ in rows if mode == "40755"}
    assert folders
    assert all(name.startswith(("/opt/garrison", "/etc/garrison", "/usr/share/doc/garrison")) for name in folders)


def test_the_rpm_needs_the_c_library_and_nothing_else_and_old_rpms_can_read_it(built: Built) -> None:
    needed = re.search(r"^glibc +(\S+)", built.report, re.MULTILINE)
    assert needed
    asked = set(rpm_query(built.rpm, "[%{REQUIRENAME}\n]").split())
    machine = os.uname().machine
    assert asked == {
        "/bin/sh",
        f"libc.so.6(GLIBC_{needed[1]})(64bit)",
        *("rpmlib(CompressedFileNames)", "rpmlib(FileDigests)", "rpmlib(PayloadFilesHavePrefix)"),
    }
    assert (
        rpm_query(built.rpm, "%{NAME} %{ARCH} %{BUILDTIME} %{BUILDHOST}") == f"garrison {machine} {EPOCH} reproducible"
    )
    assert rpm_query(built.rpm, "[%{FILEFLAGS:fflags} %{FILENAMES}\n]").count("cn ") == 1
    assert f"cn {CONFIG}\n" in rpm_query(built.rpm, "[%{FILEFLAGS:fflags} %{FILENAMES}\n]")


def test_the_bill_of_materials_names_every_package_and_library_inside(built: Built) -> None:
    text = (built.root / "opt/garrison/sbom.cdx.json").read_text()
    assert next(built.folder.glob("*.cdx.json")).read_text() == text
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "1.5",
        "garrison",
    )
    parts = {part["name"]: part for part in bill["components"]}
    assert parts["cpython"]["version"] == in_tree(built, "-V").stdout.split()[1]
    inside = {
        re.sub(r"[-_.]+", "-", name.partition("-")[0]).lower(): name.removesuffix(".dist-info").partition("-")[2]
        for name in (path.name for path in built.root.rglob("*.dist-info"))
    }
    del inside["garrison"]
    assert {name: parts[name]["version"] for name in inside} == inside
    libraries = {path.name: path for path in (built.root / "opt/garrison/lib").glob("*.so*")}
    assert set(parts) == {"cpython", *inside, *libraries}
    for name, path in libraries.items():
        assert parts[name]["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert name.startswith("libpython") or parts[name]["version"], name
    for name in inside:
        assert parts[name]["licenses"], name
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(references) == len(set(references))
    assert bill["dependencies"][0] == {"ref": "garrison", "dependsOn": references}


def test_the_manifest_lists_every_file_of_the_tree_with_its_checksum(built: Built) -> None:
    top = built.root / "opt/garrison"
    listed = dict(reversed(line.split("  ", 1)) for line in (top / "MANIFEST").read_text().splitlines())
    found = {
        f"./{path.relative_to(top)}": path for path in top.rglob("*") if path.is_file() and path.name != "MANIFEST"
    }
    assert set(listed) == set(found)
    assert all(hashlib.sha256(found[name].read_bytes()).hexdigest() == digest for name, digest in listed.items())


def test_two_builds_in_one_folder_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    held = tmp_path / "work.lock"
    with held.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, CHECKOUT / "packaging" / "build.py", "--work", tmp_path / "work", "--output", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "another build works in" in done.stderr
    assert list(tmp_path.iterdir()) == [held]


# The interpreter inside


def test_every_module_is_compiled_so_that_nothing_is_ever_written_beside_it(built: Built) -> None:
    before = files_below(built.root)
    for module in ("garrison.supervisor.agent", "garrison.fleet.cli.app", "asyncio", "ssl", "sqlite3"):
        done = in_tree(built, "-c", f"import {module}")
        assert done.returncode == 0, done.stderr
    assert files_below(built.root) == before


def test_the_callers_python_and_libraries_do_not_get_in(built: Built, tmp_path: Path) -> None:
    (tmp_path / "garrison.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "libcrypto.so.3").write_text("no library")
    hostile = {"PYTHONHOME": "/nonexistent", "PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}
    done = in_tree(
        built,
        "-c",
        "import garrison.supervisor, ssl, sys; print(sys.executable, *sys.path, ssl.__file__, sep='\\n');"
        "print(*(line.split()[-1] for line in open('/proc/self/maps') if '.so' in line), sep='\\n')",
        env=hostile,
    )
    assert done.returncode == 0, done.stderr
    libc = re.compile(r"/(ld-linux[^/]*|(libc|libm|libdl|libpthread|librt|libutil|libresolv)[.-][^/]*)$")
    outside = {line for line in done.stdout.split() if not line.startswith(str(built.root)) and not libc.search(line)}
    assert outside == set()


def test_tls_uses_the_hosts_certificates_and_not_its_openssl_configuration(built: Built, tmp_path: Path) -> None:
    code = "import os, ssl; print(os.environ['OPENSSL_CONF'], len(ssl.create_default_context().get_ca_certs()))"
    configuration, certificates = in_tree(built, "-c", code).stdout.split()
    assert configuration == "/dev/null"
    assert (int(certificates) > 0) == Path("/etc/ssl/certs/ca-certificates.crt").exists() or Path("/etc/pki").exists()
    own = in_tree(built, "-c", code, env={"OPENSSL_CONF": "/dev/zero/none", "SSL_CERT_FILE": str(tmp_path / "none")})
    assert own.stdout.split() == ["/dev/zero/none", "0"]


def test_the_configuration_that_is_installed_holds_valid_examples_and_defaults(built: Built, tmp_path: Path) -> None:
    shipped = (built.root / "etc/garrison/garrison.toml").read_text()
    assert all(line.startswith("#") or not line for line in shipped.splitlines())
    config = tmp_path / "garrison.toml"
    for text in (shipped, re.sub(r"(?m)^#(?=\S)", "", shipped)):
        config.write_text(text)
        done = in_tree(built, "-m", "garrison.supervisor", "--config", str(config), "--check")
        assert done.returncode == 0, done.stderr
    (tmp_path / "empty.toml").touch()
    plain = in_tree(
        built, "-m", "garrison.supervisor", "--config", str(tmp_path / "empty.toml"), "--print-config"
    ).stdout
    assert plain
    given = in_tree(built, "-m", "garrison.supervisor", "--config", str(config), "--print-config").stdout
    changed = set(given.splitlines()) - set(plain.splitlines())
    assert {line for line in changed if not line.startswith(("#", "groups"))} == set()


# The unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "kill").touch(mode=0o755)
    for name in ("usr", "opt/garrison/bin"):
        shutil.copytree(built.root / name, root / name, symlinks=True)
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            f"--root={root}",
            "garrison.service",
            "garrison.slice",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_caps_are_above_the_workers_aggregate(built: Built) -> None:
    unit = (built.root / "usr/lib/systemd/system/garrison.service").read_text()
    code = (
        "from garrison.supervisor.settings.schema import AggregateBudget as B; "
        "print(B().cpu_quota_percent, B().memory_max)"
    )
    quota, memory = in_tree(built, "-c", code).stdout.split()
    unit_quota = re.search(r"^CPUQuota=(\d+)%$", unit, re.MULTILINE)
    unit_memory = re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    assert unit_quota
    assert unit_memory
    assert float(unit_quota[1]) >= float(quota) + 20
    assert int(unit_memory[1]) * 1024**2 >= int(memory) + 64 * 1024**2


# Installed


def dpkg(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["dpkg", *arguments],
        env=EMPTY | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "HOME": "/root"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def known_to_dpkg() -> bool:
    asked = subprocess.run(["dpkg-query", "-s", "garrison"], capture_output=True, check=False)
    return asked.returncode == 0


def running_from_the_package() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # Not those of a container.
                ours = os.path.samefile(f"/proc/{entry}/root", "/")
                if ours and os.readlink(f"/proc/{entry}/exe") == str(PYTHON) and alive(int(entry)):
                    found.append(int(entry))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


@pytest.fixture
def installed(built: Built) -> Iterator[str]:
    """Install the package on this machine, and purge it however the test ends."""
    if os.geteuid() != 0:
        pytest.skip("installing needs root")
    if shutil.which("dpkg") is None or not Path("/var/lib/dpkg/status").exists():
        pytest.skip("this is no Debian system")
    occupied = [str(path) for path in DEFAULT_PLACES if path.exists()]
    if occupied or known_to_dpkg():
        pytest.skip(f"Garrison is on this machine already ({', '.join(occupied) or 'known to dpkg'}); left alone")
    try:
        yield dpkg("--install", built.package)
    finally:
        if known_to_dpkg():
            dpkg("--purge", "garrison")


@needs_cgroups
def test_the_agent_runs_from_the_package_and_leaves_nothing(installed: str, tmp_path: Path) -> None:
    if not Path("/run/systemd/system").exists():
        assert "systemd does not run here, so the agent was not started" in installed
    before = files_below(OPT)
    agent = RunningAgent(tmp_path / "agent")
    # The way of an operator: the package's own file, edited.
    agent.config = CONFIG
    agent.write_config("")
    hostile = {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent", "LD_LIBRARY_PATH": "/nonexistent"}
    try:
        agent.start(command=["/usr/sbin/garrisond"], env=hostile)
        worker = agent.wait_worker("process", state="running")["pid"]
        parent = int(re.findall(r"^PPid:\s*(\d+)", Path(f"/proc/{worker}/status").read_text(), re.MULTILINE)[0])
        # Exec of the nursery, fork without exec, and the title, all from the bundle.
        for pid in (agent.pid, parent, worker):
            assert os.readlink(f"/proc/{pid}/exe") == str(PYTHON)
        assert Path(f"/proc/{parent}/cmdline").read_bytes().strip(b"\0 ") == b"garrison: nursery"
        assert Path(f"/proc/{worker}/cmdline").read_bytes().strip(b"\0 ") == b"garrison: process"
        memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{worker}/smaps_rollup").read_text(), re.MULTILINE))
        private = int(memory["Private_Dirty"]) + int(memory["Private_Clean"])
        assert private * 2 < int(memory["Rss"]), memory

        mark = f"garrison-{secrets.token_hex(8)}"
        seen = subprocess.Popen(["/bin/sh", "-c", "read line", mark], stdin=subprocess.PIPE)
        try:
            until(lambda: any(mark in str(event.get("process", {})) for event in agent.events()), "the exec event")
        finally:
            seen.communicate()

        def garrison(*arguments: str) -> None:
            done = subprocess.run(
                ["/usr/bin/garrison", *arguments], env=EMPTY | hostile, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        garrison("kill", "--reason", "test")
        until(lambda: not agent.pids(), "no worker lives")
        garrison("release")
        agent.wait_worker("process", state="running")
        assert agent.stop() == 0
        subprocess.run(["/usr/sbin/garrisond", "--cleanup"], env=EMPTY, check=True, capture_output=True)
        assert agent.nodes() == []
        assert files_below(OPT) == before

        # Removed under a running agent: no process and no cgroup stays, the configuration does.
        agent.start(command=["/usr/sbin/garrisond"], env=hostile)
        agent.wait_worker("process", state="running")
        assert len(running_from_the_package()) >= 3
        dpkg("--remove", "garrison")
        assert agent.process is not None
        assert agent.process.wait(10) == 0
        assert running_from_the_package() == []
        assert agent.nodes() == []
        assert CONFIG.exists()
        assert not OPT.exists()

        dpkg("--purge", "garrison")
        assert [path for path in DEFAULT_PLACES if path.exists()] == []
        assert not known_to_dpkg()
        left = Path("/etc/systemd/system").rglob("*garrison*") if Path("/etc/systemd/system").exists() else ()
        assert list(left) == []
    finally:
        agent.cleanup()
