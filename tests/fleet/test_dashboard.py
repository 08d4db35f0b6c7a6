"""The Grafana dashboard: Grafana's own types know all of it, and it asks for metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from fedkit.server.status import DeviceStatus, FleetStatus

FILE = Path(__file__).parents[2] / "docs" / "how-to" / "grafana-fleet.json"
OF_IMPORT = {"__inputs", "__requires"}
"""What the page that imports reads, and a dashboard has not."""


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def written(path: Path) -> dict[str, set[str]]:
    """Name of each metric that a fleet writes -> its labels."""
    status = FleetStatus(devices={0: DeviceStatus(answers=1), 1: DeviceStatus()})
    status.write(path)
    families = text_string_to_metric_families(path.read_text())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Name what is not in `kept`, or another there."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{place}/{key}"
            else:
                yield from lost(value, kept[key], f"{place}/{key}")
    elif isinstance(given, list):
        if not isinstance(kept, list) or len(given) != len(kept):
            yield place
        else:
            for number, pair in enumerate(zip(given, kept, strict=True)):
                yield from lost(*pair, f"{place}/{number}")
    elif given != kept:
        yield place


def through_their_types(content: dict[str, Any]) -> dict[str, Any]:
    plugins.register_default_plugins()
    back: dict[str, Any] = json.loads(json.dumps(Dashboard.from_json(content), cls=JSONEncoder))
    return back


def test_grafanas_types_take_in_every_key() -> None:
    content = dashboard()
    assert set(lost(content, through_their_types(content))) == {f"/{key}" for key in OF_IMPORT}
    content["panels"][0]["nonsense"] = 1
    content["panels"][7]["options"]["legend"]["nonsense"] = 1
    found = set(lost(content, through_their_types(content)))
    assert {"/panels/0/nonsense", "/panels/7/options/legend/nonsense"} <= found


def test_every_metric_is_one_that_fleets_write_and_none_is_left_out(tmp_path: Path) -> None:
    names = {name for each in expressions() for name in re.findall(r"fedkit_\w+", each)}
    assert names == written(tmp_path / "metrics.prom").keys()


def test_labels_are_those_that_are_written(tmp_path: Path) -> None:
    """All but the server's, which Prometheus itself adds."""
    labels = written(tmp_path / "metrics.prom")
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            if "{{device}}" in target.get("legendFormat", "") or target.get("format") == "table":
                (name,) = re.findall(r"fedkit_\w+", target["expr"])
                assert labels[name] == {"device"}


def test_every_expression_is_promql() -> None:
    for each in expressions():
        assert promql_parser.parse(each) is not None


def test_it_asks_for_its_data_source_and_brings_no_other() -> None:
    content = dashboard()
    (needed,) = content["__inputs"]
    sources = re.findall(r'"uid": "(\$[^"]*)"', FILE.read_text())
    assert set(sources) == {f"${{{needed['name']}}}"}
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    kinds = {each["id"] for each in content["__requires"] if each["type"] == "panel"}
    assert kinds == {panel["type"] for panel in panels}


def test_no_panel_lies_over_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own
