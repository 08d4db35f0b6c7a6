"""A report as a browser's parser sees it."""

from __future__ import annotations

import csv
import gzip
import json
from base64 import b64decode
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements, text and scripts of a page.

    Attributes:
        tags: Of every element, in order.
        attributes: (tag, name, value) of every attribute.
        scripts: Their texts.
        text: What is read, without scripts and styles.
        rows: Cells of every row of every table.
        unclosed: Elements that do not end where they should.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.text += data
        if inside in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def figures(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Traces and layout of each chart, in their order."""
        found = json.loads(self.scripts[0])
        assert list(found) == [v for t, n, v in self.attributes if v.startswith("chart-")]
        return [(figure["data"], figure["layout"]) for figure in found.values()]

    def figure(self, what: str) -> list[dict[str, Any]]:
        """Traces of the first chart whose upright axis has that title."""
        return next(t for t, y in self.figures if y["yaxis"]["title"]["text"] == what)

    @property
    def csv(self) -> list[dict[str, str]]:
        """Rows of the steps that the page holds as a file."""
        return self.file("steps")

    def file(self, name: str) -> list[dict[str, str]]:
        """Rows of a file that the page holds."""
        pairs = zip(self.attributes, self.attributes[1:], strict=False)
        (link,) = [
            href for (tag, key, value), (_, _, href) in pairs
            if (tag, key) == ("a", "download") and value.partition(".")[0] == name
        ]  # fmt: skip
        kind, _, packed = link.partition(";base64,")
        data = b64decode(packed)
        text = gzip.decompress(data) if "gzip" in kind else data
        return list(csv.DictReader(text.decode().splitlines()))
