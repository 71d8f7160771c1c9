from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import keys
from garrison.supervisor.keys import (
    ALL,
    AliveKey,
    BodyKey,
    KafkaKey,
    Key,
    KeyGrammarError,
    KillswitchKey,
    MasterKey,
    PluginKey,
    RegistrationKey,
    Scope,
    StatusKey,
    TaskKey,
    UnknownKeyError,
    WorkerKey,
    WorkerLogLevelKey,
    WorkerResetKey,
    format_key,
    killswitch_keys,
    parse_key,
    watch_prefixes,
)


def _is_component(text: str) -> bool:
    try:
        keys.check_component(text, "it")
    except KeyGrammarError:
        return False
    return True


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(_is_component)
hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
scopes = st.one_of(st.just(ALL), names.map(lambda name: Scope("group", name)), hosts.map(lambda n: Scope("host", n)))
sha256s = st.binary(min_size=32, max_size=32).map(bytes.hex)
prefixes = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
all_keys: st.SearchStrategy[Key] = st.one_of(
    st.builds(KillswitchKey, scopes),
    st.builds(WorkerKey, scopes, names),
    st.builds(WorkerLogLevelKey, scopes, names),
    st.builds(WorkerResetKey, scopes, names),
    st.builds(MasterKey, scopes),
    st.builds(TaskKey, scopes, names),
    st.builds(PluginKey, scopes, names, st.sampled_from(keys.PLUGIN_NAMES)),
    st.builds(BodyKey, sha256s),
    st.builds(KafkaKey, st.sampled_from(keys.KAFKA_NAMES)),
    st.builds(RegistrationKey, hosts),
    st.builds(StatusKey, hosts),
    st.builds(AliveKey, hosts, st.ip_addresses().map(str)),
)


@given(all_keys, prefixes)
def test_a_key_survives_being_written_and_read(key: Key, prefix: str) -> None:
    assert parse_key(format_key(key, prefix), prefix) == key


@given(st.text(), prefixes)
def test_any_text_is_a_key_or_an_unknown_key(text: str, prefix: str) -> None:
    for candidate in (text, f"{prefix}/{text}", f"{prefix}/server/config/{text}"):
        try:
            key = parse_key(candidate, prefix)
        except UnknownKeyError as error:
            text_of_it = str(error)
        else:
            assert format_key(key, prefix) == candidate
            continue
        assert text_of_it.isprintable()


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("/hids/server/config/@all/kilswitch", "/hids/server/config/@all/killswitch"),
        ("/hids/server/config/@al/killswitch", "/hids/server/config/@all/killswitch"),
        ("/hids/server/config/@groups/web/killswitch", "/hids/server/config/@group/web/killswitch"),
        ("/hids/server/config/h1/worker/process/loglevel", "/hids/server/config/h1/worker/process/log_level"),
        ("/hids/agent/config/@all/plugin/process/setings", "/hids/agent/config/@all/plugin/process/settings"),
        ("/hids/kafka/hosts", "/hids/kafka/host"),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        parse_key(text)
    assert caught.value.nearest == nearest
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/hids",
        "/hids/",
        "/hids/server/config/",
        "/hids/server/config/@group/killswitch",
        "/hids/server/config/@group//killswitch",
        "/hids/server/config/h/worker/",
        "/hids/server/config/h/worker/@value",
        "/hids/config/body/ABC",
        "/other/server/config/@all/killswitch",
        "/hidsserver/config/@all/killswitch",
        "/hids/alivehost/--1.2.3.4",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UnknownKeyError):
        parse_key(text)


@given(hosts, st.lists(names, max_size=5, unique=True))
def test_every_watched_prefix_ends_in_a_slash_and_none_contains_another(host: str, groups: list[str]) -> None:
    prefixes = watch_prefixes("/hids", host, groups)
    assert all(prefix.endswith("/") for prefix in prefixes)
    assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)
    for key in killswitch_keys("/hids", host, groups):
        assert key.startswith(prefixes)


def test_killswitches_of_groups_that_were_left_can_be_looked_at_too() -> None:
    found = killswitch_keys("/hids", "h", ["a"], ["b", "a"])
    assert found == tuple(f"/hids/server/config/{s}/killswitch" for s in ("h", "@group/a", "@all", "@group/b"))


@pytest.mark.parametrize("name", ["", "@all", ".x", "a/b", "a b", "a\n", "x" * 300, "\ud800"])
def test_a_host_that_cannot_stand_in_a_key_is_refused(name: str) -> None:
    with pytest.raises(KeyGrammarError):
        watch_prefixes("/hids", name, [])


@pytest.mark.parametrize("prefix", ["", "/", "hids", "/hids/", "/a//b", "/@a"])
def test_a_prefix_that_keys_cannot_start_with_is_refused(prefix: str) -> None:
    with pytest.raises(KeyGrammarError):
        keys.check_prefix(prefix)


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(KeyGrammarError):
        watch_prefixes("/hids", "h", [f"g{number}" for number in range(65)])
