"""Take a picture of a report: `python docs/site/picture.py OUT.png CHARTS PATH [PATH...]`.

CHARTS are numbers of charts of the page, from 0, with commas between; two stand beside each other.
PATHs are run folders, or one result of a comparison. It needs Playwright, which is for development,
and the system's Chromium. The pictures of README and of docs/how-to/read-a-report.md:

    docs/images/report.png 0,1,2,3 runs/main runs/main-dense    the main example (`make run`)
    docs/images/layers.png 1,7,8,9 runs/main                    the same with `--device-eval 1`
    docs/images/comparison.png 0,2 results/compare-fashion-mnist.json
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from fedkit.report.comparison_page import comparison_report
from fedkit.report.comparison_reading import is_comparison
from fedkit.report.page import report

_ROW = 455
"""Height of a row of charts, in pixels."""

_FEWER = """(numbers) => {
  const cells = numbers.map((number) => {
    const cell = document.createElement("div");
    cell.style.minWidth = 0;
    cell.append(document.getElementById(`title-${number}`));
    cell.append(document.querySelector(`figure[aria-labelledby="title-${number}"]`));
    return cell;
  });
  document.body.style.maxWidth = "none";
  const content = document.querySelector("main");
  content.replaceChildren(...cells);
  for (const part of document.querySelectorAll("figcaption, footer")) part.remove();
  content.style.cssText = "display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem";
  for (const chart of document.querySelectorAll(".chart")) {
    chart.style.height = "360px";
    Plotly.relayout(chart, { height: 360, width: chart.clientWidth });
  }
}"""
"""Leaves some charts alone, two beside each other."""


def take(out: Path, charts: list[int], paths: list[Path]) -> None:
    """Write a PNG of some charts of a report."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "report.html"
        html = comparison_report(paths[0]) if is_comparison(paths[0]) else report(paths)
        page_file.write_text(html, encoding="utf-8")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        rows = -(-len(charts) // 2)
        page = browser.new_page(viewport={"width": 1200, "height": _ROW * rows})
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached")
        page.evaluate(_FEWER, charts)
        page.wait_for_timeout(1000)  # the charts take their new width
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    wanted, *places = sys.argv[2:]
    take(Path(sys.argv[1]), list(map(int, wanted.split(","))), list(map(Path, places)))
