"""A real browser for tests: Chromium without a window, which Playwright drives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    TimeoutError,
    expect,
    sync_playwright,
)

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
LIMIT = 120_000
"""Milliseconds after which something hangs, on a machine however busy."""

PHONE, DESK = (390, 800), (1280, 900)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium; sudo apt install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS, timeout=LIMIT)
        yield browser
        browser.close()


_MIDDLE_POINT = """(id) => {
  const chart = document.getElementById(id), { xaxis, yaxis } = chart._fullLayout;
  const trace = chart.data.find((each) => each.hoverinfo !== "skip");
  const { left, top } = chart.getBoundingClientRect();
  const [lies, heat] = [trace.orientation === "h", trace.type === "heatmap"];
  const place = (axis, value) => axis.type === "category"
    ? axis.l2p(axis._categories.indexOf(String(value))) : axis.d2p(value);
  const there = [...trace.x.keys()].filter((n) => heat || trace.y[n] !== null);
  const at = there[Math.floor((there.length - 1) / 2)];
  const inside = trace.type === "bar" ? 2 : 0;
  return [left + xaxis._offset + place(xaxis, trace.x[at]) - (lies ? inside : 0),
          top + yaxis._offset + place(yaxis, trace.y[heat ? 0 : at]) + (lies ? 0 : inside)];
}"""
"""Where on the screen a chart's middle point is; just inside of a bar's end."""


class OpenPage:
    """A report in a browser, once its charts are drawn.

    Attributes:
        page: Of Playwright.
        faults: What its console calls errors or warnings, and what it asked of a network.
    """

    def __init__(
        self, browser: Browser, url: str, size: tuple[int, int] = DESK, **how: Any
    ) -> None:
        self.faults: list[str] = []
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **how)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(LIMIT)
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self._ask(request.url, url))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-drawn=all]", state="attached")

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _ask(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "blob:", "data:")):
            self.faults.append(f"asked for {asked}")

    def marks(self) -> dict[str, tuple[int, int]]:
        """Return how many traces each chart has, and how many of them left marks."""
        found: dict[str, tuple[int, int]] = self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".chart")].map(chart => [
            chart.id, [(chart.data ?? []).length, chart.querySelectorAll(
            ".scatterlayer .trace path, .barlayer .trace path, .heatmaplayer image").length]]))"""
        )
        return found

    def without_marks(self) -> list[str]:
        """Return the charts of which some trace left no mark; there must be a chart at all."""
        found = self.marks()
        return [k for k, (traces, there) in found.items() if not 0 < traces <= there] or (
            [] if found else ["there is no chart"]
        )

    def silent_charts(self) -> list[str]:
        """Return the charts that do not answer a pointer over their middle point."""
        return [each for each in self.marks() if not self._tells(each)]

    def _tells(self, chart: str) -> bool:
        self.page.locator(f"#{chart}").scroll_into_view_if_needed()
        x, y = self.page.evaluate(_MIDDLE_POINT, chart)
        self.page.mouse.move(x + 1, y + 1)
        self.page.mouse.move(x, y)
        told = self.page.locator(f"#{chart} .hovertext").first
        try:
            told.wait_for(state="attached", timeout=LIMIT // 6)
        except TimeoutError:
            return False
        return bool((told.text_content() or "").strip())

    def hide_and_show(self) -> int:
        """Hide the first entry of each chart's legend and show it again; return how many did."""
        legends = [each for each in self.marks() if self._has_legend(each)]
        for chart in legends:
            entry = self.page.locator(f"#{chart} .legend .traces").first
            for opacity in ("0.5", "1"):
                self.page.locator(f"#{chart} .legendtoggle").first.click()
                wait_for_style(entry, "opacity", opacity)
        return len(legends)

    def _has_legend(self, chart: str) -> bool:
        return self.page.locator(f"#{chart} .legendtoggle").count() > 0

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        wide: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wide

    def violations(self) -> list[str]:
        """Return what axe-core finds serious for people who read in other ways."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]


def wait_for_style(part: Locator, name: str, value: str) -> None:
    """Wait until a part of a page looks so."""
    expect(part).to_have_css(name, value, timeout=LIMIT)


def save(path: Path, html: str) -> str:
    """Write a page; return its address."""
    path.write_text(html, encoding="utf-8")
    return path.resolve().as_uri()
