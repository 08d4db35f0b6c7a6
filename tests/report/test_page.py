"""The page of `fedkit report`: its numbers are those of the folder, and no text of it acts."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import sys
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from fedkit.cli.report import report as write_report
from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.report import downloads, markup, plotly_library
from fedkit.report.page import MOST_RUNS, names_of, report
from fedkit.report.run_steps import counted, metric_of
from fedkit.report.thin import spread, thinned
from fedkit.server.participation import order
from tests.report.parsed import Page
from tests.report.run_folders import (
    EVIL,
    hostile,
    keep_model,
    keep_shares,
    make_run,
    moved,
    step,
    whole,
)
from tests.sets import slow

LARGEST = 5_000_000


@pytest.fixture(autouse=True)
def small_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 2 MB of JavaScript out of pages that are only parsed."""
    if "whole" not in request.node.name:
        monkeypatch.setattr(plotly_library, "packed", lambda: "")


# What is shown ---------------------------------------------------------------------------------


def test_charts_have_the_numbers_of_the_folder(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")]))
    lines = [json.loads(s) for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    names = ("accuracy", "loss", "kept share of the prunable weights", "seconds")
    for name, key in zip(names, ("accuracy", "loss", "density", "seconds"), strict=True):
        (trace,) = page.figure(name)
        assert trace["x"] == [line["round"] for line in lines]
        assert trace["y"] == [line[key] for line in lines]
    down, up = page.figure("bytes")
    assert down["y"] == np.cumsum([line["bytes_down"] for line in lines]).tolist()
    assert up["y"] == np.cumsum([line["bytes_up"] for line in lines]).tolist()
    (heat,) = page.figure("class")
    assert heat["z"] == [[1, 0], [2, 1], [3, 2], [0, 3]]
    assert heat["y"] == ["0", "10", "20", "30"]
    (bars,) = page.figure("")
    assert bars["x"] == [0.25, 0.25]


def test_layers_are_followed_over_the_rounds(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")]))
    conv, linear = page.figure("kept share")
    assert (conv["x"], conv["y"]) == ([0, 0, 1, 3], [1.0, 0.25, 0.25, 0.25])
    assert (linear["x"], linear["y"]) == ([0, 0, 3], [1.0, 0.25, 0.25])
    assert conv["line"]["shape"] == "hv"
    before, first = page.figure("share")
    assert before["y"] == [1 - 2 / 4, 1.0, 1.0]
    assert (first["x"], first["y"]) == ([1, 2, 3], [2 / 4] * 3)
    (heat,) = next(t for t, _ in page.figures if "customdata" in t[0])
    assert heat["x"] == ["1"] and heat["z"] == [[4], [0]]
    assert heat["customdata"] == [[[2, 2]], [[0, 0]]]
    rows = page.file("moved")
    assert len(rows) == 5 and [rows[-1][key] for key in ("layer", "grown")] == ["conv", "2"]


def test_a_run_without_first_masks_or_checkpoint_shows_what_is_left(tmp_path: Path) -> None:
    counts = {"kept": 3, "pruned": 1, "grown": 1}
    make_run(tmp_path / "run", [step(0), step(1, layers={"conv": counts}), step(2)])
    page = Page(report([tmp_path / "run"]))
    (before,) = page.figure("share")  # of the first mask nobody knows
    assert before["name"] == "run, of the step before" and before["y"] == [None, 1.0]
    assert not any(y["yaxis"]["title"]["text"] == "kept share" for _, y in page.figures)
    assert len([1 for t, _ in page.figures if "customdata" in t[0]]) == 1


def test_a_run_of_an_older_version_says_that_nobody_knows_what_moved(tmp_path: Path) -> None:
    keep_model(make_run(tmp_path / "run", [step(1), step(2)]), {"conv": (3, 12)})
    page = Page(report([tmp_path / "run"]))
    assert "which weights moved; runs of older versions did not record it" in page.text
    assert not any("customdata" in t[0] for t, _ in page.figures)


def test_layers_and_adjustments_that_are_not_drawn_are_told(tmp_path: Path) -> None:
    names = {f"layer{n}": moved(1, 1, 1) for n in range(80)}
    steps = [step(0, layers=names), *(step(n, layers=names) for n in range(1, 301))]
    folder = make_run(tmp_path / "run", steps)
    keep_model(folder, dict.fromkeys(names, (1, 5)))
    page = Page(report([tmp_path / "run"]))
    for told in ("Of 80 layers, 24 are", "Of 80 layers, 60 are", "Of 300 adjustments, 200 are"):
        assert f"{told} drawn." in page.text
    assert len(page.file("moved")) == 80 * 301


def test_what_devices_measured_is_a_chart_of_its_own(tmp_path: Path) -> None:
    told = {
        "devices_mean": 0.5,
        "devices_worst": 0.25,
        "devices_spread": 0.1,
        "devices_measured": 9,
    }
    make_run(tmp_path / "run", [step(1, **told), step(2), step(3, **told | {"devices_mean": 0.75})])
    page = Page(report([tmp_path / "run"]))
    mean, worst = next(t for t, _ in page.figures if t[0]["name"].endswith("mean"))
    assert (mean["x"], mean["y"]) == ([1, 3], [0.5, 0.75])
    assert worst["y"] == [0.25, 0.25]


def test_bands_hold_the_middle_half_of_devices_and_all_of_them(tmp_path: Path) -> None:
    keys = ("mean", "worst", "least", "lower", "median", "upper", "most")
    values = (0.5, 0.1, 0.1, 0.4, 0.5, 0.6, 0.9)
    told = {f"devices_{key}": value for key, value in zip(keys, values, strict=True)}
    make_run(tmp_path / "run", [step(1), step(2, **told), step(4, **told)])
    page = Page(report([tmp_path / "run"]))
    wide, half, mean, _ = next(t for t, _ in page.figures if t[-1]["name"].endswith("tenth"))
    assert (wide["x"], wide["y"]) == ([2, 4, 4, 2], [0.1, 0.1, 0.9, 0.9])
    assert half["y"] == [0.4, 0.4, 0.6, 0.6]
    assert wide["legendgroup"] == half["legendgroup"] == mean["legendgroup"]
    assert "holds the middle half of the devices" in page.text


def test_tables_and_the_csv_have_the_numbers_of_the_folder(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")]))
    steps = next(n for n, row in enumerate(page.rows) if row[:3] == ["phase", "round", "accuracy"])
    assert page.rows[steps + 3][:5] == ["round", "1", "0.500001", "0.5", "0.1"]
    assert [row["accuracy"] for row in page.csv][-2:] == ["0.500002", ""]
    assert ["conv", "12", "3", "0.25"] in page.rows
    assert ["1", "6", "0", "1", "2", "3"] in page.rows
    made = next(row for row in page.rows if row[0] == "model-int8.tflite")
    assert made[2:4] == ["tflite", "1,234"] and "accuracy int8 0.625" in made[6]
    for told in ("fedkit run --x", "c0ffee", "some cpu", "flatbuffers 9.8.7", "fedkit 0.0.9"):
        assert told in page.text
    assert "What is missing" not in page.text


def test_runs_are_laid_over_each_other_and_keys_that_differ_stand_first(tmp_path: Path) -> None:
    one, two = whole(tmp_path / "one"), tmp_path / "two"
    make_run(two, [step(1), step(2)], seed=9)
    page = Page(report([one, two]))
    assert [trace["name"] for trace in page.figure("loss")] == ["one", "two"]
    assert len({trace["line"]["color"] for trace in page.figure("loss")}) == 2
    head = max(n for n, row in enumerate(page.rows) if row == ["key", "one", "two"])
    assert page.rows[head + 1][0] == "seed" and page.rows[head + 1][2] == "9"


def test_one_partition_of_several_runs_is_drawn_once(tmp_path: Path) -> None:
    for name, classes in (("a", 4), ("b", 4), ("c", 5)):
        keep_shares(make_run(tmp_path / name, [step(1)]), 3, classes)
    page = Page(report([tmp_path / name for name in "abc"]))
    assert len([1 for traces, _ in page.figures if traces[0]["type"] == "heatmap"]) == 2
    assert "Classes on each device: a, b" in page.text


def test_examples_without_classes_are_counted(tmp_path: Path) -> None:
    keep_shares(make_run(tmp_path / "run", [step(1)]), 5, 0)
    (bars,) = Page(report([tmp_path / "run"])).figure("examples")
    assert bars["y"] == [3] * 5


def test_runs_of_two_metrics_have_a_chart_each_in_their_own_form(tmp_path: Path) -> None:
    about = {"name": "mean error", "higher_is_better": False, "form": ".3f"}
    make_run(tmp_path / "a", [step(1, accuracy=0.25)])
    make_run(tmp_path / "b", [step(1, accuracy=12.5, metric=about)])
    page = Page(report([tmp_path / "a", tmp_path / "b"]))
    assert page.figure("accuracy")[0]["y"] == [0.25]
    assert page.figure("mean error")[0]["y"] == [12.5]
    assert "Mean error over rounds (lower is better)" in page.text
    overview = {row[0]: row for row in page.rows if row and row[0] in "ab"}
    assert overview["a"][5] == "25.00%" and overview["b"][5] == "12.500"


def test_messages_are_counted_whole_where_every_step_tells_them() -> None:
    payload = [step(0, bytes_up=0, bytes_down=0), step(1)]
    messages = [payload[0], step(1, message_bytes_up=9, message_bytes_down=8)]
    assert counted(payload) == "bytes"
    assert counted(messages) == "message_bytes"
    assert counted([*payload, messages[1]]) == "bytes"


def test_devices_of_a_fleet_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [step(1)])
    events: list[dict[str, Any]] = [
        {"event": "serve", "devices": 2, "rounds": 3},
        {"event": "answer", "device": 1, "bytes": 70, "peak_bytes": 5, "time": 1.0},
        {"event": "refused", "device": 0, "phase": "train", "reason": EVIL},
    ]
    text = "".join(json.dumps(each) + "\n" for each in events)
    (tmp_path / "run/events.jsonl").write_text(text + '{"event": "ans')
    page = Page(report([tmp_path / "run"]))
    assert ["1", "1", "0", "0", "0", "70", "5", "False"] in page.rows
    assert ["refused", "0", "train", markup.plain(EVIL)] in page.rows


def test_devices_that_a_simulation_asks_are_counted(tmp_path: Path) -> None:
    how: dict[str, Any] = {"devices": 30, "rounds": 50, "devices_per_round": 4, "seed": 3}
    config = make_run(tmp_path / "run", [step(0), *map(step, range(1, 41))], **how).config
    page = Page(report([tmp_path / "run"]))
    (bars,) = page.figure("rounds")
    expected = [0] * 30
    for number in range(1, 41):
        drawn = order(config, number)
        assert drawn is not None
        for device in drawn.tolist()[:4]:
            expected[device] += 1
    assert bars["y"] == expected and sum(expected) == 160
    assert [int(row["rounds_asked"]) for row in page.file("participation")] == expected


@pytest.mark.parametrize("how", [{}, {"availability": "trace:/dev/zero"}])
def test_who_took_part_is_not_drawn_where_all_did_or_a_file_says_it(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    make_run(tmp_path / "run", [step(1)], **how)
    assert "took part" not in Page(report([tmp_path / "run"])).text


ODD: list[Any] = [math.nan, math.inf, -1, 2**70, 10**400, True, None, "x", [], {}, EVIL]


@pytest.mark.parametrize("value", ODD, ids=[repr(value)[:12] for value in ODD])
def test_events_that_hold_anything_end_no_report(tmp_path: Path, value: Any) -> None:
    make_run(tmp_path / "run", [step(1)])
    whole_one = {"event": "answer", "device": 1, "bytes": 70, "peak_bytes": 5, "time": 1.0}
    events = [{"event": "serve", "devices": 2, "rounds": 3}, whole_one]
    names = ("serve", "step", "refused", "other", "answer")
    keys = ("device", "devices", "bytes", "peak_bytes", "time", "reason", "phase")
    events += [{**whole_one, "event": name, key: value} for name in names for key in keys]
    (tmp_path / "run/events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    page = Page(report([tmp_path / "run"]))
    assert page.unclosed == []
    answers, *_ = page.figure("requests")
    assert answers["x"][:2] == [0, 1] and answers["y"][1] >= 1


# What is missing -------------------------------------------------------------------------------


def test_what_is_not_there_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    page = Page(report([make_run(tmp_path / "run").path]))
    for name in ("metrics.jsonl", "partition.npz", "checkpoint", "summary.json"):
        assert f"run: {name}: there is none" in page.text
    assert page.unclosed == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "partition.npz", "summary.json", "config.toml",
                                  "checkpoint/structure.json", "checkpoint/model.safetensors",
                                  "model-int8.tflite.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["half", "zeros", "a folder", "missing"])
def test_no_damaged_file_ends_a_report(tmp_path: Path, name: str, damage: str) -> None:
    path = whole(tmp_path / "run") / name
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "half" else bytes(len(data)))
    if name == "config.toml" and damage in ("a folder", "missing"):
        with pytest.raises(CheckpointError, match="not a run folder"):
            report([tmp_path / "run"])
        return
    page = Page(report([tmp_path / "run"]))
    assert page.unclosed == []
    if not name.startswith("model"):
        assert name.partition("/")[0] in page.text.partition("What is missing")[2]


def test_half_a_line_and_nan_are_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [step(1), step(2, loss=math.nan), step(3, loss=math.inf)])
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "acc')
    page = Page(report([tmp_path / "run"]))
    assert page.figure("loss")[0]["y"] == [0.5, None, None]
    assert "1 line that cannot be read" in page.text and "2 values, NaN or infinite" in page.text


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = whole(tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json", "partition.npz", "events.jsonl", "error.txt"):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
    assert "metrics.jsonl: there is none" in Page(report([path])).text


def test_states_are_told(tmp_path: Path) -> None:
    running = make_run(tmp_path / "running", [step(1)])
    make_run(tmp_path / "stopped", [step(1)])
    make_run(tmp_path / "finished", [step(3)])
    make_run(tmp_path / "failed", [step(1)])
    (tmp_path / "failed/error.txt").write_text(f"no more\n{EVIL}")
    with running.held():
        page = Page(report(sorted(tmp_path.iterdir())))
    states = {row[0]: row[1] for row in page.rows if len(row) == 10 and row[0] != "run"}
    assert states == {name: name for name in ("running", "stopped", "finished", "failed")}
    assert "Why failed ended early" in page.text and "no more\n" in page.text


# Hostile text ----------------------------------------------------------------------------------


HOSTILE = [
    EVIL,
    "<b>%{x}</b>$\\frac$",
    "\x1b]0;x\x07\u202e\u2028\ud800"[:-1],
    "x" * 100_000,
    "x" * 10_000_000,
]

KINDS = ["script", "markup", "escapes", "long", "10 MB"]


@pytest.mark.parametrize("text", [*HOSTILE[:-1], slow(HOSTILE[-1])], ids=KINDS)
def test_text_of_others_is_text(tmp_path: Path, text: str) -> None:
    html = report([hostile(tmp_path, text)])
    page = Page(html)
    assert page.unclosed == []
    assert set(page.tags) & {"img", "iframe", "b", "object", "link"} == set()
    assert page.tags.count("script") == 3 == html.lower().count("<script")
    assert html.lower().count("</script") == page.tags.count("script")
    assert all(c.isprintable() or c == "\n" for c in html)
    assert len(html) < 200_000
    for traces, layout in page.figures:
        for shown in (*(t.get("name", "") for t in traces), layout["yaxis"]["title"]["text"]):
            assert not set("<$") & set(shown) and len(shown) < 400


@settings(max_examples=40)
@given(st.text(max_size=300))
def test_any_text_comes_back_from_between_tags(text: str) -> None:
    page = Page(f"<p>{markup.safe(text)}</p>")
    assert page.text == markup.plain(text) and len(page.text) <= markup.LONGEST
    assert all(c.isprintable() for c in page.text)
    assert page.tags == ["p"]


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x"])
def test_a_spreadsheet_computes_no_text(text: str) -> None:
    assert downloads.to_csv(["a"], [[text], [-1.5]]).splitlines() == ["a", f"'{text}", "-1.5"]


@pytest.mark.parametrize("form", ["1000000000.2f", "{}", "", 5, None, ".2%", "x" * 99])
def test_a_format_cannot_fill_the_memory(form: Any) -> None:
    about = {"name": "m", "higher_is_better": True, "form": form}
    assert len(metric_of([step(1, metric=about)]).text(0.5)) < 20


@pytest.mark.parametrize("about", [5, [], "accuracy", {}, {"name": 5}, {"name": " ", "form": "g"}])
def test_what_is_no_metric_is_accuracy(about: Any) -> None:
    assert metric_of([step(1, metric=about)]).name == "accuracy"


# Network, and people who read in other ways ------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")]))
    told = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert told and all(value.startswith("data:") for value in told)
    policy = next(v for t, n, v in page.attributes if (t, n) == ("meta", "content") and "src" in v)
    assert policy.startswith("default-src 'none';")


def test_headings_and_tables_can_be_listened_to(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")]))
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.tags.count("table") == page.tags.count("caption") > 4
    heads = page.tags.count("th")
    assert heads == sum(n == "scope" for t, n, _ in page.attributes if t == "th")
    ids = {value for _, name, value in page.attributes if name == "id"}
    labels = [v for t, n, v in page.attributes if (t, n) == ("figure", "aria-labelledby")]
    assert len(labels) == len(page.figures) and set(labels) <= ids
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "name", "viewport") in page.attributes


# Size ------------------------------------------------------------------------------------------


def test_a_usual_report_with_the_whole_library_is_below_5_mb(tmp_path: Path) -> None:
    html = report([whole(tmp_path / "run")])
    assert 1_000_000 < len(html.encode()) <= LARGEST
    packed = Page(html).scripts[1]
    assert gzip.decompress(b64decode(packed)).decode() == get_plotlyjs()


@pytest.mark.parametrize("runs", [1, slow(3), slow(10)])
def test_whole_large_runs_are_thinned_to_below_5_mb_and_it_is_said(
    tmp_path: Path, runs: int
) -> None:
    peak, random = 4_321, np.random.default_rng(0)
    losses = random.random((runs, 10_000))
    losses[:, peak] = 99.0
    for name, line in zip("abcdefghij", losses.tolist(), strict=False):
        folder = make_run(tmp_path / name, [step(n, loss=loss) for n, loss in enumerate(line)])
        keep_shares(folder, 1000, 200)
    html = report(sorted(tmp_path.iterdir()))
    assert len(html.encode()) <= LARGEST
    page = Page(html)
    for trace in page.figure("loss"):
        assert len(trace["x"]) == len(trace["y"]) <= 1000
        assert 99.0 in trace["y"] and trace["x"][0] == 0 and trace["x"][-1] == 9999
    assert "Of 10,000 steps, " in page.text
    assert "Of 1,000 devices, 300 are drawn. Of 200 classes, 100 are drawn." in page.text
    assert f"({1000 // runs:,} of 10,000 steps)" in page.text
    count = len(page.csv)
    part = "all" if count == 10_000 * runs else f"{count:,} of {10_000 * runs:,}"
    assert f"steps as CSV: {part} steps, compressed by gzip" in page.text
    assert runs > 1 or part == "all"
    assert len(page.file("examples")) == 3000


@pytest.mark.slow
def test_a_hundred_runs_fit_whole(tmp_path: Path) -> None:
    for number in range(MOST_RUNS):
        keep_shares(make_run(tmp_path / f"r{number}", [step(n) for n in range(300)]), number + 1, 9)
    assert len(report(sorted(tmp_path.iterdir()))) <= LARGEST


def test_ways_to_share_data_out_that_are_not_drawn_are_told_and_in_the_file(tmp_path: Path) -> None:
    for number in range(12):
        keep_shares(make_run(tmp_path / f"run{number:02}", [step(1)]), 2 + number, 4)
    page = Page(report(sorted(tmp_path.iterdir())))
    assert len([1 for traces, _ in page.figures if traces[0]["type"] == "heatmap"]) == 8
    assert "Of 12 ways to share data out, the first 8 are drawn." in page.text
    rows = page.file("examples")
    assert len(rows) == sum(3 * (2 + number) for number in range(12))
    counted = {(row["runs"], row["device"]): 0 for row in rows}
    assert len(counted) == sum(2 + number for number in range(12))
    last = [row for row in rows if row["runs"] == "run11" and row["device"] == "12"]
    assert [(row["class"], row["examples"]) for row in last] == [
        ("0", "1"),
        ("10", "2"),
        ("20", "3"),
    ]


def test_layers_that_no_table_has_are_told_and_in_the_file(tmp_path: Path) -> None:
    layers = {f"layer{number}": (number % 5, 5) for number in range(2_500)}
    keep_model(make_run(tmp_path / "run", [step(1)]), layers)
    page = Page(report([tmp_path / "run"]))
    assert "Of 2,500 layers, 120 are drawn." in page.text
    assert "Density of each layer (2,000 of 2,500 layers)" in page.text
    shares = {row["layer"]: float(row["run, share"]) for row in page.file("layers")}
    assert shares == {name: kept / size for name, (kept, size) in layers.items()}
    shown = [row[0] for row in page.rows if row and row[0].startswith("layer")]
    assert len(shown) == 2_000 + 1 and {"layer0", "layer2499"} < set(shown)


def test_devices_that_no_table_has_are_told_and_in_the_file(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [step(1)])
    events = [{"event": "serve", "devices": 1_000, "rounds": 3}]
    events += [
        {"event": "answer", "device": each, "bytes": each, "peak_bytes": 5, "time": 1.0}
        for each in range(1_000)
    ]
    (tmp_path / "run/events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    page = Page(report([tmp_path / "run"]))
    assert "Of 1,000 devices, 300 are drawn." in page.text
    assert "Devices of run (400 of 1,000 devices)" in page.text
    assert [row["bytes_up"] for row in page.file("devices")] == [str(n) for n in range(1_000)]
    answers, refused, *_ = page.figure("requests")
    assert answers["y"] == [1] * 300 and refused["y"] == [0] * 300


@settings(max_examples=12)
@given(st.integers(1, 300), st.integers(0, 3_000_000))
def test_files_keep_to_their_room_and_say_so(count: int, room: int) -> None:
    def row(number: int) -> list[object]:
        return [number, "x" * (number % 50), number**9]

    files = [downloads.File(name, "rows", "abc", count * 20, row) for name in ("one", "two")]
    html = downloads.downloads(files, room)
    assert len(html) <= max(room, 2 * 100_000) + 500
    page = Page(html)
    for name in ("one", "two"):
        rows = page.file(name)
        part = "all" if len(rows) == count * 20 else f"{len(rows):,} of {count * 20:,}"
        assert f"{name} as CSV: {part} rows" in page.text
        assert all(int(each["c"]) == int(each["a"]) ** 9 for each in rows)


def test_more_runs_than_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 100 runs, and these are 101"):
        report([tmp_path / str(number) for number in range(MOST_RUNS + 1)])


values = st.lists(st.none() | st.floats(-1e9, 1e9), max_size=300)


@given(values, st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(line: list[float | None], most: int) -> None:
    kept = thinned(line, most)
    assert kept == sorted(set(kept)) and len(kept) <= most
    numbers = [value for value in line if value is not None]
    left = [value for each in kept if (value := line[each]) is not None]
    if line:
        assert kept[0] == 0 and kept[-1] == len(line) - 1
    if numbers:
        assert (min(left), max(left)) == (min(numbers), max(numbers))


@given(st.integers(0, 500), st.integers(2, 60))
def test_a_spread_is_even_with_both_ends(count: int, most: int) -> None:
    kept = spread(count, most)
    assert len(kept) == len(set(kept)) == min(count, most)
    if count:
        assert kept[0] == 0 and kept[-1] == count - 1
        gaps = [after - before for before, after in pairwise(kept)]
        assert not gaps or max(gaps) - min(gaps) <= 1


# Where it is written -----------------------------------------------------------------------------


def test_a_report_is_written_again_but_over_nothing_else(tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    first = write_report([run], None)
    assert first == write_report([run], None)
    assert first == {
        "path": str(run / "report.html"),
        "bytes": (run / "report.html").stat().st_size,
    }
    before = (run / "config.toml").read_bytes()
    for place, why in (("config.toml", "no report"), ("checkpoint", "folder"), ("no/x", "make it")):
        with pytest.raises(ConfigError, match=why):
            write_report([run], run / place)
    assert (run / "config.toml").read_bytes() == before


def test_runs_of_one_name_are_told_apart_and_one_run_is_shown_once(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a/run", [step(1)]), make_run(tmp_path / "b/run", [step(1)])
    assert len(set(names_of([one.path, two.path]))) == 2
    page = Page(report([one.path, two.path, one.path]))
    assert len(page.figure("loss")) == 2


def test_without_plotly_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedkit\[report\]'"):
        write_report([whole(tmp_path / "run")], None)
    assert not (tmp_path / "run/report.html").exists()
