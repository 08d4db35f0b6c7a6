"""Reports in a real browser: what is drawn, what can be done with it, and no text of it acts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedkit.report import live as live_module
from fedkit.report import page as page_module
from fedkit.report.live import Live
from fedkit.report.page import report
from fedkit.report.serving import served
from tests.report.browser import DESK, PHONE, OpenPage, chromium, save, wait_for_style
from tests.report.run_folders import EVIL, hostile, keep_shares, make_run, step, whole, write_steps

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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
    marks = opened.marks()
    assert len(marks) >= 8 and all(traces and there >= traces for traces, there in marks.values())
    assert page.locator("#content img, #content b, #content script").count() == 0
    page.locator("#chart-1 .legendtoggle").nth(1).click()
    wait_for_style(page.locator("#chart-1 .legend .traces").nth(1), "opacity", "0.5")
    page.locator("#chart-1 .point").nth(1).hover(force=True)  # another layer takes the pointer
    page.wait_for_selector("#chart-1 .hoverlayer .hovertext", state="attached")
    page.locator("details").first.locator("summary").click()
    assert page.locator("details").first.locator("td").first.is_visible()
    assert opened.overflow() == 0
    assert opened.faults == []


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
    folder = make_run(tmp_path / "run", [step(n, loss=1 / (n + 1)) for n in range(10_000)])
    keep_shares(folder, 1_000, 100)
    opened = OpenPage(browser, save(tmp_path / "report.html", report([folder.path])))
    assert all(traces and there >= traces for traces, there in opened.marks().values())
    points: int = opened.page.evaluate("() => document.getElementById('chart-1').data[0].x.length")
    assert 500 < points <= 1_000
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="steps as CSV").click()
    assert download.value.suggested_filename == "steps.csv.gz"
    with gzip.open(download.value.path(), "rt") as file:
        assert sum(1 for _ in file) == 10_001
    assert opened.faults == []


@pytest.mark.slow
def test_a_real_run_is_drawn(tmp_path: Path, browser: Browser) -> None:
    command = ["run", "--quick", "--in-process", "--devices", "4", "--rounds", "3", "--name", "a"]
    for words in (command, ["report", "runs/a"]):
        subprocess.run([sys.executable, "-m", "fedkit", *words], cwd=tmp_path, check=True)
    opened = OpenPage(browser, (tmp_path / "runs/a/report.html").as_uri())
    marks = opened.marks()
    assert len(marks) >= 7
    assert all(traces and there >= traces for traces, there in marks.values())
    assert opened.violations() == [] and opened.faults == []


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
