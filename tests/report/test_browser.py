"""Reports in a real browser: what is drawn, what can be done with it, and no text of it acts."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedkit.flower.processes import kill_marked
from fedkit.report import live as live_module
from fedkit.report import page as page_module
from fedkit.report.comparison_page import comparison_report
from fedkit.report.live import Live
from fedkit.report.page import report
from fedkit.report.serving import served
from tests.fleet.real import RealFleet
from tests.report.browser import DESK, PHONE, OpenPage, chromium, save, wait_for_style
from tests.report.run_folders import (
    EVIL,
    hostile,
    keep_model,
    keep_shares,
    make_run,
    moved,
    step,
    whole,
    write_steps,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser


RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def fleet(path: Path) -> Path:
    """A run of real devices, of which one was refused."""
    make_run(path, [step(1), step(2)])
    answer = {"event": "answer", "bytes": 70, "peak_bytes": 5, "time": 1.0}
    events = [
        {"event": "serve", "devices": 2, "rounds": 3},
        *({**answer, "device": each} for each in (0, 1, 1)),
        {"event": "refused", "device": 0, "phase": EVIL, "reason": EVIL},
    ]
    (path / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    return path


def test_a_report_is_drawn_and_answers_a_reader(tmp_path: Path, browser: Browser) -> None:
    runs = [hostile(tmp_path, EVIL), whole(tmp_path / "run"), fleet(tmp_path / "fleet")]
    opened = OpenPage(browser, save(tmp_path / "report.html", report(runs)), PHONE)
    page = opened.page
    assert opened.overflow() == 0
    assert len(opened.marks()) >= 8 and opened.without_marks() == []
    assert page.locator("#content img, #content b, #content script").count() == 0
    page.locator("#chart-1 .legendtoggle").nth(1).click()
    wait_for_style(page.locator("#chart-1 .legend .traces").nth(1), "opacity", "0.5")
    page.locator("#chart-1 .point").nth(1).hover(force=True)  # another layer takes the pointer
    page.wait_for_selector("#chart-1 .hoverlayer .hovertext", state="attached")
    page.locator("details").first.locator("summary").click()
    assert page.locator("details").first.locator("td").first.is_visible()
    assert opened.overflow() == 0
    assert opened.faults == []


def check_reader(browser: Browser, address: str, charts: int) -> None:
    """See that a page can be used by everyone: on a desk, on a phone, by pointer and by ear."""
    opened = OpenPage(browser, address)
    assert opened.without_marks() == [] and len(opened.marks()) >= charts
    assert opened.silent_charts() == []
    assert opened.hide_and_show() > 0
    for part in opened.page.locator("summary").all():
        part.click()
    assert opened.violations() == [] and opened.faults == []
    phone = OpenPage(browser, address, PHONE, color_scheme="dark")
    assert phone.overflow() == 0 and phone.violations() == [] and phone.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(RESULTS.glob("compare-*.json")), ids=lambda each: each.stem)
def test_a_published_comparison_is_drawn_and_answers_a_reader(
    path: Path, tmp_path: Path, browser: Browser
) -> None:
    check_reader(browser, save(tmp_path / "report.html", comparison_report(path)), 2)


@pytest.mark.slow
def test_a_job_is_drawn_and_answers_a_reader(tmp_path: Path, browser: Browser) -> None:
    """The main example as `make run` runs it, shorter, with all that its devices can tell."""
    words = ["run", "--quick", "--devices=4", "--rounds=4", "--name=a", "--with-dense"]
    more = [
        "--adjust-every=1",
        "--adjust-stop=4",
        "--device-eval=1",
        "--validation-share=0.2",
        "--in-process",
    ]
    for command in ([*words, *more], ["report", "runs/a", "runs/a-dense"]):
        subprocess.run([sys.executable, "-m", "fedkit", *command], cwd=tmp_path, check=True)
    address = (tmp_path / "runs/a/report.html").as_uri()
    check_reader(browser, address, 11)
    text = OpenPage(browser, address).page.locator("#content").inner_text()
    assert "Layers of a, model-int8.tflite" in text and "of 160, of 16 examples in" in text
    assert "Weights pruned and grown in each adjustment: a" in text


@pytest.mark.slow
def test_a_real_fleets_run_is_drawn_and_answers_a_reader(tmp_path: Path, browser: Browser) -> None:
    """Two processes over TLS, whose folder is what any fleet leaves."""
    config = {"devices": 2, "rounds": 3, "epochs": 1, "examples_per_device": 24, "partition": "iid",
              "test_examples": 60, "pool_size": 2, "server_epochs": 1, "sparse_epochs": 1,
              "adjust_every": 1, "adjust_stop": 3}  # fmt: skip
    with RealFleet(tmp_path / "fleet", config) as made:
        made.start_server()
        made.start_devices()
        ended = made.run("--name", "a")
        assert ended.returncode == 0, ended.stdout
        kill_marked(f"FLWR_HOME={made.fleet.server / 'flwr'}")
    run = made.fleet.runs / "a"
    check_reader(browser, save(tmp_path / "report.html", report([run])), 9)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if "layers" in line] == [0, 0, 1, 2]


@pytest.mark.slow
def test_a_fleet_that_says_ten_million_letters_and_nan_is_drawn(
    tmp_path: Path, browser: Browser
) -> None:
    path = fleet(tmp_path / "fleet")
    long = {"event": "refused", "device": 0, "phase": "x" * 10**7, "reason": EVIL * 10**5}
    odd = {"event": "answer", "device": 1, "bytes": math.nan, "peak_bytes": 5, "time": math.inf}
    with (path / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in (long, odd, long))
    steps = [step(n, loss=math.nan if n % 2 else 1.0, accuracy=math.inf) for n in range(1, 5)]
    write_steps(path, [*steps, step(5, layers={EVIL * 10**4: moved(1, 1, 1)})])
    html = report([path])
    assert len(html.encode()) < 5_000_000
    opened = OpenPage(browser, save(tmp_path / "report.html", html))
    assert opened.without_marks() == []
    assert opened.page.locator("#content img, #content script").count() == 0
    assert opened.faults == [] and opened.violations() == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_stops_people_who_read_in_other_ways(
    tmp_path: Path, browser: Browser, scheme: str
) -> None:
    runs = [hostile(tmp_path, EVIL), whole(tmp_path / "run"), fleet(tmp_path / "fleet")]
    address = save(tmp_path / "report.html", report(runs))
    for size in (DESK, PHONE):
        opened = OpenPage(browser, address, size, color_scheme=scheme)
        for part in opened.page.locator("summary").all():
            part.click()
        assert opened.violations() == []
        assert opened.overflow() == 0 and opened.faults == []


@pytest.mark.slow
def test_a_page_with_a_serious_fault_is_found(tmp_path: Path, browser: Browser) -> None:
    html = report([whole(tmp_path / "run")])
    bad = html.replace("</main>", "<img src='data:,'><p style='color:#777'>grey</p></main>")
    found = OpenPage(browser, save(tmp_path / "bad.html", bad)).violations()
    assert any(each.startswith("image-alt") for each in found)


@pytest.mark.slow
def test_a_large_report_is_usable(tmp_path: Path, browser: Browser) -> None:
    """10,000 rounds, of which each moves weights, and 1,000 devices with all they answered."""
    layers = {f"layer{n}": moved(10, 1, 1) for n in range(20)}
    figures = dict.fromkeys(("mean", "worst", "least", "lower", "median", "upper", "most"), 0.5)
    told = {f"devices_{key}": value for key, value in figures.items()}
    steps = [step(n, loss=1 / (n + 1), layers=layers, **told) for n in range(10_000)]
    folder = make_run(tmp_path / "run", steps)
    keep_model(folder, dict.fromkeys(layers, (10, 100)))
    keep_shares(folder, 1_000, 100)
    answer = {"event": "answer", "bytes": 70, "peak_bytes": 5, "time": 1.0}
    with (folder.path / "events.jsonl").open("w") as file:
        file.write(json.dumps({"event": "serve", "devices": 1_000, "rounds": 10_000}) + "\n")
        for number in range(100_000):
            file.write(json.dumps({**answer, "device": number % 1_000}) + "\n")
    html = report([folder.path])
    assert len(html.encode()) <= 5_000_000
    opened = OpenPage(browser, save(tmp_path / "report.html", html))
    assert opened.without_marks() == [] and opened.silent_charts() == []
    points: int = opened.page.evaluate("() => document.getElementById('chart-2').data[0].x.length")
    assert 500 < points <= 1_000
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="steps as CSV").click()
    assert download.value.suggested_filename == "steps.csv.gz"
    with gzip.open(download.value.path(), "rt") as file:
        assert sum(1 for _ in file) == 10_001
    assert opened.faults == []


@pytest.mark.slow
def test_without_javascript_the_page_says_so_and_shows_its_tables(
    tmp_path: Path, browser: Browser
) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(save(tmp_path / "report.html", report([whole(tmp_path / "run")])))
    assert page.get_by_text("The charts could not be drawn.").is_visible()
    assert page.get_by_role("table").first.is_visible()


UPDATES = 100


@pytest.mark.slow
def test_a_live_page_follows_a_run_and_keeps_what_a_reader_did(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "_SHARE", 0)
    monkeypatch.setattr(page_module, "PAUSE", 10)
    path = whole(tmp_path / "run")
    with served(Live(lambda: [path])) as url:
        opened = OpenPage(browser, url)
        page = opened.page
        page.locator("#chart-2 .legendtoggle").nth(1).click()
        hidden = page.locator("#chart-2 .legend .traces").nth(1)
        wait_for_style(hidden, "opacity", "0.5")
        page.locator("summary", has_text="Steps of run").click()
        for number in range(UPDATES):
            seen = int(page.locator("html").get_attribute("data-updates") or 0)
            with (path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(step(4 + number)) + "\n" + '{"half": ')
            page.wait_for_selector(f"html:not([data-updates='{seen}'])", state="attached")
            write_steps(path, [step(n) for n in range(4 + number)])
        last = f"{step(UPDATES + 2)['accuracy']:.6g}"
        page.wait_for_selector(f"td:has-text('{last}')", state="attached")
        wait_for_style(hidden, "opacity", "0.5")
        assert page.locator("details[open]").count() == 1
        assert page.locator("#live").inner_text() == "Live: what is new appears by itself."
        assert opened.overflow() == 0 and opened.faults == []
    expected = page.get_by_text("The server does not answer. This is what it told last.")
    expected.wait_for()
    assert all(traces and there for traces, there in opened.marks().values())


@pytest.mark.slow
def test_a_live_page_shows_a_run_that_begins(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "PAUSE", 10)
    with served(Live(lambda: [tmp_path / "run"])) as url:
        opened = OpenPage(browser, url, PHONE)
        assert opened.page.title() == "No run yet" and opened.marks() == {}
        whole(tmp_path / "run")
        opened.page.get_by_role("heading", name="Report of run").wait_for()
        opened.page.locator("#chart-1 .point").first.wait_for(state="attached")
        assert opened.violations() == []
        assert opened.overflow() == 0 and opened.faults == []
