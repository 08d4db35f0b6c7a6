"""Take the picture of a report: `python docs/site/picture.py OUT.png RUN [RUN...]`.

It needs Playwright, which is for development, and the system's Chromium. The picture in README is
`docs/images/report.png`, of the main example (`make run`) and its dense counterpart.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from fedkit.report.page import report

_WINDOW = {"width": 1200, "height": 910}
_FEWER = """() => {
  document.body.style.maxWidth = "none";
  for (const part of document.querySelectorAll("h1, figcaption, .note, section:not(:has(figure))"))
    part.remove();
  const content = document.querySelector("section");
  content.style.cssText = "display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem";
  content.querySelector("h2").remove();
  const parts = [...content.children];
  for (let at = 0; at < parts.length; at += 2) {
    const cell = document.createElement("div");
    cell.style.minWidth = 0;
    cell.append(parts[at], parts[at + 1]);
    content.append(cell);
  }
  window.dispatchEvent(new Event("resize"));
}"""
"""Leaves charts alone, two beside each other."""


def take(out: Path, runs: list[Path]) -> None:
    """Write a PNG of the first charts of a report about some runs."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "report.html"
        page_file.write_text(report(runs), encoding="utf-8")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=_WINDOW)  # type: ignore[arg-type]
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached")
        page.evaluate(_FEWER)
        page.wait_for_timeout(1000)  # the charts take their new width
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
