from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings import (
    AggregateBudget,
    Budget,
    ConfigurationError,
    Settings,
    aggregate_from,
    budget_from,
    load,
    needs_restart,
)
from garrison.supervisor.settings.load import loads
from garrison.supervisor.settings.places import Surroundings
from garrison.supervisor.settings.problems import MAX_PROBLEMS
from garrison.supervisor.settings.schema import BUILTIN_WORKERS
from garrison.workers.runtime import loader

MIB = 2**20
ROOT = Surroundings(root=True, hostname="db7", home="/root", environ={})
USER = Surroundings(root=False, hostname="db7", home="/home/u", environ={})


def read(text: str, here: Surroundings = ROOT) -> Settings:
    return loads(text.encode(), "f.toml", here)


def problems(text: str, here: Surroundings = ROOT) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        read(text, here)
    return {problem.key: str(problem) for problem in caught.value.problems}


def only(text: str, key: str) -> str:
    found = problems(text)
    assert list(found) == [key]
    return found[key]


def test_an_empty_file_gives_the_defaults_of_the_design() -> None:
    settings = read("")
    assert settings.agent.hostname == "db7"
    assert settings.agent.prefix == "/hids"
    assert settings.agent.budget == AggregateBudget(cpu_quota_percent=20.0, memory_max=256 * MIB)
    assert settings.workers["process"].budget == Budget(
        cpu_quota_percent=10, cpu_trip_percent=5, cpu_trip_samples=12, sample_seconds=5, memory_high=64 * MIB,
        memory_max=96 * MIB, pids_max=32, nofile=256, events_per_second=1000, beat_seconds=5,
    )  # fmt: skip
    assert settings.sink.file.max_bytes == 20 * MIB
    assert settings.warnings == ()


def test_root_uses_the_systems_folders() -> None:
    agent = read("").agent
    assert (agent.state_dir, agent.run_dir, agent.log_dir) == (
        "/var/lib/garrison",
        "/run/garrison",
        "/var/log/garrison",
    )
    assert agent.killswitch_file == "/etc/garrison/killswitch"
    assert read("").store.directory.path == "/etc/garrison/store"
    assert read("").sink.file.path == "/var/log/garrison/events.ndjson"


def test_another_user_uses_folders_of_their_own() -> None:
    settings = read("", USER)
    agent = settings.agent
    assert agent.state_dir == "/home/u/.local/state/garrison"
    assert agent.run_dir == "/home/u/.local/state/garrison/run"
    assert agent.log_dir == "/home/u/.local/state/garrison/log"
    assert agent.killswitch_file == "/home/u/.config/garrison/killswitch"
    assert settings.store.directory.path == "/home/u/.config/garrison/store"


def test_the_xdg_variables_are_followed_and_relative_ones_are_not() -> None:
    environ = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "here"}
    settings = read("", Surroundings(root=False, hostname="h", home="/home/u", environ=environ))
    assert settings.agent.state_dir == "/s/garrison"
    assert settings.agent.run_dir == "/run/user/7/garrison"
    assert settings.store.directory.path == "/home/u/.config/garrison/store"


def test_folders_follow_the_state_and_log_folder_that_the_file_names() -> None:
    settings = read('agent.state_dir = "/data/g"\n', USER)
    assert settings.agent.log_dir == "/data/g/log"
    assert settings.sink.file.path == "/data/g/log/events.ndjson"


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        """
        [agent]
        hostname = "a/b"
        cgroup_mode = "unifed"
        [workers.process.budget]
        pids_max = "many"
        cpu_quota_percent = 900
        [log]
        files = "yes"
        """
    )
    assert set(found) == {
        "agent.hostname",
        "agent.cgroup_mode",
        "workers.process.budget.pids_max",
        "workers.process.budget.cpu_quota_percent",
        "log.files",
    }
    assert 'Did you mean "unified"?' in found["agent.cgroup_mode"]
    assert "1 to 400 percent of one core" in found["workers.process.budget.cpu_quota_percent"]
    assert "expected a whole number, got the string 'many'" in found["workers.process.budget.pids_max"]
    assert all(text.startswith("f.toml: ") for text in found.values())


def test_the_number_of_reported_problems_is_bounded() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("".join(f"k{number} = 1\n" for number in range(500)))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert "400 more" in str(caught.value)
    assert caught.value.exit_code is ExitCode.CONFIGURATION


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert 'Did you mean "hostname"?' in only('agent.hostnam = "x"', "agent.hostnam")
    assert 'Did you mean "agent"?' in only("[agnt]", "agnt")
    assert "Known here: level, files, max_bytes" in only("log.zzz = 1", "log.zzz")


def test_a_key_in_the_wrong_table_is_sent_to_the_right_one() -> None:
    text = only("[workers.process]\npids_max = 3", "workers.process.pids_max")
    assert "[workers.process.budget]" in text


KAFKA = '[sink]\nbackend = "kafka"\n[sink.kafka]\nbootstrap_servers = ["k1:9092", "[::1]"]\n'


def test_kafka_needs_servers() -> None:
    assert "List some brokers" in only('sink.backend = "kafka"', "sink.kafka.bootstrap_servers")
    assert read(KAFKA).sink.kafka.bootstrap_servers == ("k1:9092", "[::1]")


@pytest.mark.parametrize(
    ("lines", "key", "says"),
    [
        ('bootstrap_servers = ["http://k1:9092"]', "bootstrap_servers[0]", "not host or host:port"),
        ('topic = "a b"', "topic", "is no topic"),
        ('topics = {alert = "a/b"}', "topics.alert", "is no topic"),
        ('cert = "/c"\nkey = "/k"', "cert", "needs tls"),
        ('tls = true\ncert = "/c"', "cert", "needs key"),
        ('ca_cert = "/c"', "ca_cert", "needs tls"),
        ('sasl_mechanism = "PLAIN"', "sasl_mechanism", "needs username"),
        ('username = "u"\npassword_file = "/p"', "username", "needs sasl_mechanism"),
        ('sasl_mechanism = "SCRAM-SHA-256"\nusername = "u"', "username", "needs password_file"),
        ('sasl_mechanism = "SCRAM"', "sasl_mechanism", "allowed is"),
        ("records_per_message = 0", "records_per_message", "allowed is 1 to"),
    ],
)
def test_settings_of_kafka_that_cannot_be_are_named(lines: str, key: str, says: str) -> None:
    assert says in only(f"[sink.kafka]\n{lines}", f"sink.kafka.{key}")


@pytest.mark.parametrize(
    ("compression", "module", "package"),
    [("lz4", "lz4", "lz4"), ("zstd", "zstandard", "zstandard"), ("snappy", "snappy", "python-snappy")],
)
def test_a_compression_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, compression: str, module: str, package: str
) -> None:
    lines = f'{KAFKA}compression = "{compression}"\n'
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    text = only(lines, "sink.kafka.compression")
    assert f"needs the Python package {package}" in text
    assert 'Write "gzip"' in text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("gzip") if name == module else found(name))
    assert read(lines).sink.kafka.compression == compression


@pytest.mark.parametrize(
    ("name", "level"),
    [("error", "err"), ("WARN", "warning"), ("critical", "crit"), ("notice", "notice"), ("Debug", "debug")],
)
def test_log_levels_have_the_usual_synonyms(name: str, level: str) -> None:
    assert read(f'log.level = "{name}"').log.level == level


def test_sizes_and_durations_take_units() -> None:
    budget = (
        read(
            '[workers.process.budget]\nmemory_high = "32MiB"\nmemory_max = 50331648\n'
            'sample_seconds = "250ms"\nbeat_seconds = 2'
        )
        .workers["process"]
        .budget
    )
    assert (budget.memory_high, budget.memory_max) == (32 * MIB, 48 * MIB)
    assert (budget.sample_seconds, budget.beat_seconds) == (0.25, 2.0)
    assert isinstance(budget.beat_seconds, float)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "true", '"7%"', "[1]", "{}", "2024-01-01", "-1", "1e400"])
def test_what_is_no_percentage_in_range_is_refused(value: str) -> None:
    only(f"workers.process.budget.cpu_trip_percent = {value}", "workers.process.budget.cpu_trip_percent")


def test_memory_high_above_memory_max_names_both() -> None:
    text = only('workers.process.budget.memory_high = "97 MiB"', "workers.process.budget.memory_high")
    assert "97 MiB" in text
    assert "workers.process.budget.memory_max, which is 96 MiB" in text


def test_a_quota_below_the_default_trip_value_says_that_it_is_the_default() -> None:
    text = only("workers.process.budget.cpu_quota_percent = 3", "workers.process.budget.cpu_trip_percent")
    assert "is 5 % (the default), above" in text


def test_a_worker_may_not_have_more_than_all_workers_together() -> None:
    found = problems('[agent.budget]\ncpu_quota_percent = 8\nmemory_max = "80 MiB"')
    assert "agent.budget.cpu_quota_percent" in found["workers.process.budget.cpu_quota_percent"]
    assert "agent.budget.memory_max" in found["workers.process.budget.memory_max"]


def test_without_a_workers_table_the_built_in_ones_run_and_with_one_exactly_those() -> None:
    assert tuple(read("").workers) == BUILTIN_WORKERS
    assert tuple(read('[workers.mine]\nmodules = ["a.b:C"]').workers) == ("mine",)
    assert read("[workers.process]").workers["process"].modules == ("process",)
    none = read("[workers]")
    assert none.workers == {}
    assert any("no worker" in warning for warning in none.warnings)


def test_the_built_in_workers_are_those_that_the_runtime_can_load() -> None:
    assert loader.builtins() == BUILTIN_WORKERS


def test_a_worker_that_is_no_built_in_names_the_nearest_one() -> None:
    text = only("[workers.proces]", "workers.proces")
    assert 'Did you mean "process"?' in text
    assert "workers.proces.command" in text


@pytest.mark.parametrize("name", ["Bad", "1st", '"a b"', '"a/b"', "a" + "b" * 32, '"\\n"', '"ä"'])
def test_a_worker_name_that_could_not_be_a_key_or_a_node_is_refused(name: str) -> None:
    found = problems(f'[workers.{name}]\nmodules = ["process"]')
    assert len(found) == 1
    assert "no valid worker name" in next(iter(found.values()))


def test_no_worker_is_called_as_the_agent_calls_itself() -> None:
    found = problems('[workers.agent]\nmodules = ["process"]')
    assert "is the name that the agent's own events bear" in found["workers.agent"]
    assert "\n" not in next(iter(found.values()))


@pytest.mark.parametrize("spec", ["process", "package.module:Class", "m:C", "/opt/x/y.py:C"])
def test_module_specifications_of_each_kind_are_taken(spec: str) -> None:
    assert read(f'[workers.w]\nmodules = ["{spec}"]').workers["w"].modules == (spec,)


@pytest.mark.parametrize("spec", ["proces", "a.b", "x.py:C", "/opt/x.py", "/opt/../x.py:C", "a..b:C", "a:b:c", "/x:C"])
def test_other_module_specifications_are_refused(spec: str) -> None:
    only(f'[workers.w]\nmodules = ["{spec}"]', "workers.w.modules[0]")


def test_a_command_excludes_modules_and_needs_an_absolute_path() -> None:
    found = problems('[workers.w]\nmodules = ["process"]\ncommand = ["run"]')
    assert set(found) == {"workers.w.command", "workers.w.command[0]"}


def test_an_environment_is_for_a_command_only_and_has_proper_names() -> None:
    assert "external program" in only('workers.process.environment = { A = "1" }', "workers.process.environment")
    only('[workers.w]\ncommand = ["/bin/x"]\nenvironment = { "A=B" = "1" }', 'workers.w.environment."A=B"')
    assert read('[workers.w]\ncommand = ["/bin/x", ""]\nenvironment = { A = "" }').workers["w"].command == (
        "/bin/x",
        "",
    )


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("{ a = 2024-01-01 }", "workers.process.settings.a"),
        ("{ a = [1, nan] }", "workers.process.settings.a[1]"),
        ("{ a = 99999999999999999999 }", "workers.process.settings.a"),
        ("3", "workers.process.settings"),
    ],
)
def test_settings_that_no_worker_could_receive_are_refused(value: str, key: str) -> None:
    only(f"workers.process.settings = {value}", key)


def test_deep_nesting_is_refused_wherever_it_comes_from() -> None:
    deep = ".".join("a" * 50)
    assert any("levels deep" in text for text in problems(f"workers.process.settings.{deep} = 1").values())
    assert "nested too deeply" in only("a = " + "[" * 100_000, "")


@pytest.mark.parametrize("path", ["relative", "~/x", "/a/../b", "/a\\u0007b"])
def test_a_path_must_be_absolute_and_plain(path: str) -> None:
    only(f'agent.state_dir = "{path}"', "agent.state_dir")


def test_a_run_dir_too_long_for_a_socket_is_refused_before_bind_fails() -> None:
    assert "UNIX socket" in only(f'agent.run_dir = "/{"r" * 100}"', "agent.run_dir")


@pytest.mark.parametrize("name", ["a/b", "@all", "x" * 254, "a b", "..", "ü"])
def test_host_names_that_cannot_be_part_of_a_key_are_refused(name: str) -> None:
    only(f'agent.hostname = "{name}"', "agent.hostname")


def test_the_machines_own_name_is_checked_too() -> None:
    found = problems("", Surroundings(root=True, hostname="", home="/", environ={}))
    assert "Set agent.hostname" in found["agent.hostname"]


def test_a_name_that_other_hosts_have_is_warned_of() -> None:
    assert "localhost" in read('agent.hostname = "localhost"').warnings[0]


def test_groups_are_unique_and_can_be_keys() -> None:
    assert "listed twice" in only('agent.groups = ["a", "a"]', "agent.groups")
    only('agent.groups = ["a", "@b"]', "agent.groups[1]")
    assert "Write ['web']" in only('agent.groups = "web"', "agent.groups")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a = \n", "line 1, column 5"),
        (b"x = 1\ny\n", "line 2, column 2"),
        (b"\xef\xbb\xbfa = 1", "byte order mark"),
        (b"x = 1\ny = '\xff'\n", "line 2 is not UTF-8 (byte 0xff)"),
        (b"a = " + b"9" * 5000, "no usable TOML"),
        (b"a = 'x", "is no TOML"),
    ],
)
def test_a_syntax_error_says_where_it_is(data: bytes, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loads(data, "f.toml", ROOT)
    assert expected in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_settings_or_a_configuration_error(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        loads(data, "f.toml", ROOT)
    except ConfigurationError:
        return  # anything else fails the test


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_budget_keys = st.sampled_from(Budget.__struct_fields__) | st.text(max_size=8)


@given(st.dictionaries(_budget_keys, _json | st.integers(1, 300) | st.just("48 MiB"), max_size=6) | _json)
def test_any_budget_document_is_refused_or_within_every_bound(document: object) -> None:
    aggregate = AggregateBudget()
    try:
        budget = budget_from(document, Budget(), aggregate=aggregate)
    except ConfigurationError:
        return
    assert budget.memory_high <= budget.memory_max <= aggregate.memory_max
    assert 0 < budget.cpu_trip_percent <= budget.cpu_quota_percent <= aggregate.cpu_quota_percent
    assert 1 <= budget.pids_max <= 4096


def test_a_partial_budget_keeps_the_rest_of_its_base() -> None:
    base = Budget(pids_max=7)
    assert budget_from({"cpu_quota_percent": 12}, base) == Budget(pids_max=7, cpu_quota_percent=12)
    assert aggregate_from({"memory_max": "128 MiB"}, AggregateBudget()).memory_max == 128 * MIB


def test_a_wrong_budget_names_its_source_and_keys() -> None:
    with pytest.raises(ConfigurationError) as caught:
        budget_from({"memory_max": "8 MiB", "pid_max": 1}, Budget(), source="/hids/x/budget")
    assert [problem.key for problem in caught.value.problems] == ["pid_max", "memory_high"]
    assert str(caught.value).startswith("/hids/x/budget: pid_max: is no known setting. Did you mean")


def test_a_named_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load(str(tmp_path / "none.toml"), here=ROOT)


def test_what_is_no_file_is_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="no regular file"):
        load(str(tmp_path / "fifo"), here=ROOT)
    with pytest.raises(ConfigurationError, match="is a folder"):
        load(str(tmp_path), here=ROOT)
    with pytest.raises(ConfigurationError, match="no folder"):
        load("/etc/passwd/x", here=ROOT)


def test_a_huge_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigurationError, match="larger than"):
        load(str(tmp_path / "f"), here=ROOT)


def test_a_file_that_others_may_write_is_warned_of(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    path = tmp_path / "f.toml"
    path.write_text("")
    path.chmod(0o644)
    assert load(str(path), here=ROOT).warnings == ()
    path.chmod(0o666)
    (warning,) = load(str(path), here=ROOT).warnings
    assert f"chmod go-w {path}" in warning
    assert load(str(path), here=ROOT).source == str(path)


def test_the_users_own_file_is_the_default_one(tmp_path: Path) -> None:
    here = Surroundings(root=False, hostname="h", home="/x", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    if not os.path.exists("/etc/garrison/garrison.toml"):
        assert load(None, here=here).source == ""
    (tmp_path / "garrison").mkdir()
    (tmp_path / "garrison" / "garrison.toml").write_text('agent.hostname = "mine"')
    assert load(None, here=here).agent.hostname == "mine"


def test_changes_that_need_a_restart_are_named() -> None:
    old = read("")
    new = read(
        'agent.prefix = "/other"\nagent.groups = ["a"]\nstore.directory.path = "/srv/keys"\nlog.level = "debug"\n'
        "workers.process.priority = 3"
    )
    assert needs_restart(old, new) == ("agent.prefix", "store.directory.path")
    assert needs_restart(old, old) == ()
