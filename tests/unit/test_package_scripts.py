"""Parts of the maintainer scripts that need neither a package nor a systemd."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "packaging" / "scripts"

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def run(command: str, top: Path) -> str:
    """Run shell code that has the parts of the scripts, with their folders below one of ours."""
    parts = "; ".join(f". {SCRIPTS / name}" for name in ("common.sh", "keep.sh", "takeover.sh"))
    done = subprocess.run(
        ["sh", "-c", f"{parts}; opt=$1/opt kept=$1/kept refused=$1/opt/.refused; {command}", "sh", top],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with an installed version after a put-back: two files of its own, one of another version's."""
    own = {"bin/program": b"x", "lib/new": b"y"}
    for name, content in {**own, "lib/old/left": b"z", ".refused": b"9\n"}.items():
        path = tmp_path / "opt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  ./{name}\n" for name, content in own.items()]
    (tmp_path / "opt" / "MANIFEST").write_text("".join(lines))
    (tmp_path / "kept").mkdir()
    return tmp_path


def names(tree: Path) -> list[str]:
    return sorted(str(path.relative_to(tree / "opt")) for path in (tree / "opt").rglob("*"))


def test_what_is_not_the_new_versions_goes_after_a_put_back(tree: Path) -> None:
    assert run("prune", tree) == ""
    assert names(tree) == ["MANIFEST", "bin", "bin/program", "lib", "lib/new"]


def test_with_a_list_that_a_full_disk_has_cut_short_nothing_goes(tree: Path) -> None:
    before = names(tree)
    run("sort() { command sort | head -n 1; return 2; }; prune", tree)
    assert names(tree) == before


@pytest.mark.parametrize(
    ("told", "option"),
    [
        ("{ path=/usr/sbin/garrisond ; argv[]=/usr/sbin/garrisond ; ignore_errors=no ; status=0/0 }", ""),
        ("{ path=/x ; argv[]=/x --config /srv/g.toml ; ignore_errors=no ; status=0/0 }", "--config /srv/g.toml"),
        ("{ path=/x ; argv[]=/x --config=/srv/g.toml --a ; ignore_errors=no }", "--config /srv/g.toml"),
        ("", ""),
    ],
)
def test_the_configuration_of_the_unit_is_found(told: str, option: str, tmp_path: Path) -> None:
    assert run(f"systemctl() {{ echo 'ExecStart={told}'; }}; configuration", tmp_path).strip() == option


@pytest.mark.parametrize("now", ["active", "failed", "inactive"])
def test_what_an_upgrade_that_was_cut_off_has_kept_is_kept_on(tree: Path, now: str) -> None:
    kept = tree / "kept"
    shutil.copytree(tree / "opt", kept / "opt")
    (kept / "state").write_text("active\n")
    (kept / "refused").write_text("8\nit was bad\n")
    told = run(f"agent_state() {{ echo {now}; }}; keep_running_version; echo $?", tree)
    assert "did not come to its end" in told
    assert told.endswith("\n0\n")
    # Failed it may have because of what is half there; whoever has stopped it wants it stopped.
    assert (kept / "state").read_text() == {"inactive": "inactive\n"}.get(now, "active\n")
    assert sorted(path.name for path in kept.iterdir()) == ["again", "opt", "state"]


def test_what_cannot_be_kept_on_stops_the_upgrade_and_stays(tree: Path) -> None:
    kept = tree / "kept"
    shutil.copytree(tree / "opt", kept / "opt")
    (kept / "state").write_text("active\n")
    (kept / "state.new").symlink_to("/dev/full")
    told = run("agent_state() { echo inactive; }; keep_running_version; echo $?", tree)
    assert "cannot be written: not upgraded" in told
    assert told.endswith("\n1\n")
    assert (kept / "state").read_text() == "active\n"
    assert (kept / "opt" / "bin" / "program").exists()
