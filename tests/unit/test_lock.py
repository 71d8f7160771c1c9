from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.lock import LOCK_NAME, AlreadyRunningError, InstanceLock, LockError
from garrison.supervisor.settings.places import FolderError, make_folder

HOLDER = """
import sys
from garrison.supervisor.lock import InstanceLock
lock = InstanceLock.acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_holder_is_named_and_its_death_releases_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / LOCK_NAME)
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(AlreadyRunningError) as caught:
                InstanceLock.acquire(path)
            assert caught.value.pid == holder.pid
            assert caught.value.exit_code is ExitCode.ALREADY_RUNNING
            assert path in str(caught.value)
        finally:
            holder.kill()
    # The file still holds the dead one's pid, which means nothing.
    assert int(Path(path).read_text()) == holder.pid
    with InstanceLock.acquire(path):
        assert int(Path(path).read_text()) == os.getpid()


def test_a_holder_that_has_not_signed_yet_is_found_in_the_kernels_list(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    with InstanceLock.acquire(str(path)):
        path.write_text("")
        with pytest.raises(AlreadyRunningError) as caught:
            InstanceLock.acquire(str(path))
        assert caught.value.pid in (os.getpid(), None)  # a container's /proc/locks may leave it out


def test_a_lock_can_be_taken_again_after_it_was_closed(tmp_path: Path) -> None:
    path = str(tmp_path / LOCK_NAME)
    first = InstanceLock.acquire(path)
    first.close()
    first.close()
    InstanceLock.acquire(path).close()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / LOCK_NAME)
    with InstanceLock.acquire(path):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        InstanceLock.acquire(path).close()
    finally:
        child.communicate()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to(victim)
    with pytest.raises(LockError, match="symbolic link") as caught:
        InstanceLock.acquire(str(tmp_path / LOCK_NAME))
    assert caught.value.exit_code is ExitCode.OS_REFUSED
    assert victim.read_text() == "precious"


def test_a_hard_link_to_another_file_is_not_written_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / LOCK_NAME)
    with pytest.raises(LockError, match="2 links"):
        InstanceLock.acquire(str(tmp_path / LOCK_NAME))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_without_hanging(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / LOCK_NAME)
    with pytest.raises(LockError, match="remove it"):
        InstanceLock.acquire(str(tmp_path / LOCK_NAME))


def test_the_folder_is_made_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        InstanceLock.acquire(str(tmp_path / "a" / "b" / LOCK_NAME)).close()
    finally:
        os.umask(before)
    wanted = 0o755 if os.geteuid() == 0 else 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == wanted
    assert (tmp_path / "a" / "b" / LOCK_NAME).stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_made_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"file/run.*agent\.run_dir.*no folder") as caught:
        InstanceLock.acquire(str(tmp_path / "file" / "run" / LOCK_NAME))
    assert caught.value.errno == errno.ENOTDIR
    assert not str(caught.value).startswith("[")


def test_a_folder_is_not_made_over_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="link"):
        make_folder(str(tmp_path / "link"), 0o755)
