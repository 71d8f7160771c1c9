"""The parts of tests/vm that need no machine."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.vm import guide, initramfs
from tests.vm.transcript import Transcript


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio (apt-get install cpio)")
def test_the_archive_is_one_that_cpio_reads() -> None:
    archive = initramfs.archive(("bin",), {"init": b"#!/bin/sh\n", "bin/odd": b"x" * 4097})
    listed = subprocess.run(["cpio", "-itv"], input=archive, capture_output=True, check=True, timeout=60)
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(line[0], line[-1], int(line[4])) for line in lines] == [
        ("drwxr-xr-x", "bin", 0),
        ("-rwxr-xr-x", "init", 10),
        ("-rwxr-xr-x", "bin/odd", 4097),
    ]


def test_the_guide_is_cut_into_commands() -> None:
    text = "## One\n```sh\nls -l     # look\n# nothing\ncat <<'END'\n# kept\nEND\n```\n"
    text += "```\nno\n```\n## Two\n```sh\ntrue\n```\n"
    assert [(each.section, each.text) for each in guide.commands(text)] == [
        ("One", "ls -l"),
        ("One", "cat <<'END'\n# kept\nEND"),
        ("Two", "true"),
    ]


def test_every_section_that_is_tried_is_in_the_guide() -> None:
    sections = {each.section for each in guide.commands(guide.GUIDE.read_text(encoding="utf-8"))}
    assert set(guide.SECTIONS) == sections - {"Red Hat, SUSE and their kin"}


def test_a_step_that_fails_is_in_the_table_and_goes_on_up() -> None:
    transcript = Transcript("name")
    with transcript.step("first") as say:
        say("a | b")
    assert transcript.good
    with pytest.raises(ValueError, match="odd"), transcript.step("second"):
        raise ValueError("odd\nmore")
    assert not transcript.good
    table = transcript.table()
    assert "| ok | first | a / b | 0.0 |" in table
    assert "| **failed** | second | odd | 0.0 |" in table


def test_nothing_done_is_not_good() -> None:
    assert not Transcript("name").good
