"""What is in packaging/monitoring: rules and dashboards that load, and that ask for nothing that nobody exports."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from garrison.supervisor.metrics.catalogue import METRICS
from tests.etcd.cluster import Cluster
from tests.promtool import MISSING, promtool, run

FOLDER = Path(__file__).parents[2] / "packaging" / "monitoring"
RULES = sorted(FOLDER.glob("*.rules.yml"))
DASHBOARDS = sorted(FOLDER.glob("*.dashboard.json"))
OURS = {metric.name for metric in METRICS}
PROMETHEUS = {"up"}
"""What Prometheus itself makes of every scrape."""

needs_promtool = pytest.mark.skipif(promtool() is None, reason=MISSING)


def expressions(path: Path) -> list[str]:
    """Return every query of a file of rules, or of a dashboard."""
    if path.suffix == ".json":
        return [target["expr"] for panel in panels(path) for target in panel.get("targets", ())]
    found, lines = [], iter(path.read_text().splitlines())
    for line in lines:
        match = re.match(r"^( +)expr: (.*)$", line)
        if match is None:
            continue
        if match.group(2) != "|":
            found.append(match.group(2))
            continue
        block = []
        for more in lines:
            if not more.startswith(match.group(1) + "  "):
                break
            block.append(more.strip())
        found.append(" ".join(block))
    return found


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


def metrics_in(expression: str) -> Iterator[str]:
    """Yield the metrics that a query asks for: words that are followed by labels or a range, or look like ours."""
    for match in re.finditer(
        r"\b([a-z_][a-z0-9_]*)\b(?=\s*[\[{]|\s*(?:[-+*/<>=!)]|$| unless| and| or| offset))", expression
    ):
        word = match.group(1)
        if "_" in word or word == "up":
            yield word


def without_strings(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', re.sub(r"\b(by|on) \([^)]*\)", "", expression))


def asked(path: Path) -> set[str]:
    names = set()
    for expression in expressions(path):
        # Labels stand inside braces; what is left there are no metrics.
        bare = re.sub(r"\{[^}]*\}", "{}", without_strings(expression))
        names |= set(metrics_in(bare))
    return names


def test_the_files_are_there_and_are_understood_by_this_test() -> None:
    assert [path.name for path in RULES] == ["etcd.rules.yml", "garrison.rules.yml"]
    assert [path.name for path in DASHBOARDS] == ["garrison-agents.dashboard.json", "garrison-etcd.dashboard.json"]
    for path in RULES:
        assert len(expressions(path)) == path.read_text().count("- alert:")
    assert set(metrics_in("a_total{} / on () b_bytes > 3 unless c_state{} == 1")) == {"a_total", "b_bytes", "c_state"}


@pytest.mark.parametrize("path", [*RULES, *DASHBOARDS], ids=lambda path: path.name)
def test_every_metric_of_ours_that_is_asked_for_is_one_that_the_agent_exports(path: Path) -> None:
    """That the agent exports what the catalogue lists is seen by ``tests/e2e/test_metrics.py``."""
    names = asked(path)
    assert len(names) > 10
    assert {name for name in names if name.startswith("garrison_")} <= OURS


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = set().union(*(asked(path) for path in DASHBOARDS))
    assert shown >= OURS


def test_every_metric_of_etcd_that_is_asked_for_is_exported_by_a_real_one(etcd: Cluster) -> None:
    endpoint = etcd.endpoints[0]
    url = endpoint if endpoint.startswith("http") else f"http://{endpoint}"
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    exported = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    for path in (FOLDER / "etcd.rules.yml", FOLDER / "garrison-etcd.dashboard.json"):
        missing = asked(path) - exported - PROMETHEUS
        assert not missing, path
    assert 'grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"' in text


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_is_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] >= 36
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    found = panels(path)
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
            for target in panel["targets"]:
                assert set(re.findall(r"\$\{?([a-z]+)", target["expr"])) <= names


def test_every_alert_has_a_test_of_its_own() -> None:
    for path in RULES:
        tested = path.with_name(path.name.replace(".rules.", ".test.")).read_text()
        for alert in re.findall(r"- alert: (\w+)", path.read_text()):
            assert f'alertname="{alert}"' in tested, alert


@needs_promtool
def test_prometheus_loads_the_rules() -> None:
    done = run("check", "rules", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_alerts_fire_where_they_should_and_nowhere_else(path: Path) -> None:
    done = run("test", "rules", path.with_name(path.name.replace(".rules.", ".test.")))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_prometheus_understands_every_query_of_a_dashboard(path: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$\w+", "x", expression)}
        for number, expression in enumerate(expressions(path))
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    done = run("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
