"""Values of kernel files: what is written, what reads back, and that a group of changes holds whole or not at all."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.cgroups import kill
from garrison.supervisor.cgroups.errors import LimitError, UnsupportedError
from garrison.supervisor.cgroups.files import (
    PAGE_BYTES,
    Change,
    amount,
    apply,
    bandwidth,
    flat_keyed,
    pages,
    read,
    text_change,
    write,
    write_busy,
)
from garrison.supervisor.cgroups.legacy import shares
from garrison.supervisor.cgroups.unified import working_bytes


class Kernel:
    """Files with a rule: what may be written, and what then reads back."""

    def __init__(self, values: dict[str, int | None], refuses: set[str], clamps: set[str]) -> None:
        self.values = values
        self.refuses, self.clamps = refuses, clamps
        self.written: list[str] = []

    def change(self, name: str, wanted: int | None) -> Change:
        def put(value: int | str | None) -> None:
            if name in self.refuses:
                raise OSError(errno.EINVAL, "Invalid argument", name)
            assert not isinstance(value, str)
            self.written.append(name)
            self.values[name] = 1 if name in self.clamps and value == wanted else value

        return Change(name, wanted, lambda: self.values[name], put)


FILES = st.sampled_from("abcdef")


@given(
    st.dictionaries(FILES, st.integers(2, 9) | st.none(), min_size=1),
    st.sets(FILES, max_size=2),
    st.sets(FILES, max_size=2),
    st.data(),
)
def test_changes_hold_whole_or_not_at_all(
    old: dict[str, int | None], refuses: set[str], clamps: set[str], data: st.DataObject
) -> None:
    wanted = {name: data.draw(st.integers(2, 9) | st.none(), label=name) for name in old}
    kernel = Kernel(dict(old), refuses, clamps)
    changes = [kernel.change(name, value) for name, value in wanted.items()]
    blocked = [n for n in wanted if wanted[n] != old[n] and n in refuses | clamps]
    if blocked:
        with pytest.raises(LimitError, match=f"^{blocked[0]}: "):
            apply(changes)
        assert kernel.values == old
    else:
        apply(changes)
        assert kernel.values == wanted


def test_old_values_return_last_first() -> None:
    kernel = Kernel({"parent": 2, "child": 2, "last": 2}, {"last"}, set())
    with pytest.raises(LimitError):
        apply([kernel.change("parent", 5), kernel.change("child", 5), kernel.change("last", 5)])
    assert kernel.written == ["parent", "child", "child", "parent"]


def test_a_clamped_value_names_file_wanted_and_got() -> None:
    kernel = Kernel({"cpu.x": 5}, set(), {"cpu.x"})
    with pytest.raises(LimitError, match=r"cpu\.x: wanted 7, got 1"):
        apply([kernel.change("cpu.x", 7)])


def test_a_value_that_does_not_return_is_told() -> None:
    def put(value: object) -> None:
        if value == 3:
            raise OSError(errno.EBUSY, "busy")

    state = iter([3, 4, 4])
    with pytest.raises(LimitError, match=r"could not be put back to 3: .*busy"):
        apply([Change("f", 9, lambda: next(state), put)])


def test_a_missing_file_is_a_limit_error_that_says_what_that_means(tmp_path: object) -> None:
    with pytest.raises(LimitError, match="does not offer this file"):
        apply([text_change(f"{tmp_path}/pids.max", 5)])


def test_files_are_written_whole_and_read_back(tmp_path: object) -> None:
    path = f"{tmp_path}/memory.max"
    with open(path, "w") as file:
        file.write("max\n")
    apply([text_change(path, 8192)])
    assert read(path) == "8192"
    apply([text_change(path, None)])
    assert read(path) == "max"


def test_errors_carry_the_path(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        write(f"{tmp_path}/nothing", "1")
    with pytest.raises(OSError, match="/dev/full"):
        write("/dev/full", "1")
    with pytest.raises(OSError, match="/proc/self/mem"):
        read("/proc/self/mem")


def test_enabling_a_controller_says_what_to_do(tmp_path: object) -> None:
    with pytest.raises(UnsupportedError, match=r"cgroup\.subtree_control.*does not offer"):
        write_busy(f"{tmp_path}/cgroup.subtree_control", "+cpu")


def test_unlimited_is_none_in_every_dialect() -> None:
    huge = 2**63 - 1 - (2**63 - 1) % PAGE_BYTES
    assert [amount(text) for text in ("max", "-1", str(huge), str(2**64 - 1), str(2**63 - 1), None)] == [None] * 6
    assert amount("4096\n") == 4096


@given(st.integers(PAGE_BYTES, 2**50))
def test_memory_limits_are_kept_in_whole_pages_and_never_above_what_was_asked(limit: int) -> None:
    kept = pages(limit)
    assert kept is not None
    assert kept % PAGE_BYTES == 0
    assert limit - PAGE_BYTES < kept <= limit


@pytest.mark.parametrize("limit", [0, -1, PAGE_BYTES - 1])
def test_less_than_a_page_is_refused(limit: int) -> None:
    with pytest.raises(LimitError, match="less than one page"):
        pages(limit)


@given(st.floats(1, 100_000))
def test_quotas_are_microseconds_of_a_tenth_of_a_second(percent: float) -> None:
    quota, period = bandwidth(percent)
    assert quota is not None
    assert period == 100_000
    assert abs(quota - percent * 1000) <= 0.5


@given(st.floats(0.1, 1))
def test_a_quota_below_a_millisecond_is_one_in_a_longer_period(percent: float) -> None:
    quota, period = bandwidth(percent)
    assert quota is not None
    assert quota >= 1000
    assert 100_000 <= period <= 1_000_000
    assert 100 * quota / period == pytest.approx(percent, rel=1e-3)


def test_no_cap_has_the_kernels_own_period() -> None:
    assert bandwidth(None) == (None, 100_000)


@pytest.mark.parametrize("percent", [0.0, 0.09, -5.0])
def test_a_quota_below_the_kernels_least_is_refused(percent: float) -> None:
    with pytest.raises(LimitError, match=r"below the least of 0\.1 %"):
        bandwidth(percent)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_shares_keep_the_order_of_weights_and_stay_in_the_kernels_range(one: int, other: int) -> None:
    assert 2 <= shares(one) <= 262_144
    assert (one < other) == (shares(one) < shares(other))
    assert shares(None) == shares(100) == 1024


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers(0, 2**64)))
def test_flat_keyed_files_are_parsed_and_unknown_lines_left_out(values: dict[str, int]) -> None:
    text = "".join(f"{key} {value}\n" for key, value in values.items())
    assert flat_keyed(text + "new thing here\nodd\nx max\n") == values


def test_working_memory_leaves_out_what_the_kernel_can_take_back() -> None:
    stat = {"anon": 100, "file": 5000, "shmem": 10, "sock": 1, "slab_reclaimable": 900, "slab_unreclaimable": 20}
    old = {**stat, "kernel_stack": 4, "pagetables": 3, "percpu": 2}
    assert working_bytes(old) == 140
    assert working_bytes({**old, "kernel": 930}) == 141
    assert working_bytes({}) == 0


def test_the_kill_module_is_fit_for_the_nursery() -> None:
    with open(kill.__file__) as file:
        tree = ast.parse(file.read())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name.startswith("garrison")}
    assert ours == {"garrison.supervisor.cgroups.base"}
    assert imported - ours <= {"__future__", "collections.abc", "errno", "os", "signal", "time"}


def test_no_module_loads_a_library_before_it_is_needed() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        "import garrison.supervisor.cgroups.unprivileged, garrison.supervisor.cgroups.detect\n"
        "heavy = {'psutil', 'cgroupspy', 'inotify_simple', 'asyncio', 'logging', 'subprocess'}\n"
        "sys.exit(','.join(sorted(heavy & (set(sys.modules) - before))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == ""
