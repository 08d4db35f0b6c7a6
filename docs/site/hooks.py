"""What mkdocs does beside its own: pictures, the list of decisions, pages made from the code.

A page says `<!-- generate NAME -->` where the function of that name in `generate` writes.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.site import generate  # noqa: E402  # the repository must be found first

PICTURES = "pictures"
"""Folder of the site that the pictures of results/ go to."""

FROM_NETWORK = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?(?:https?:)?//[^>]*>"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of docs/decisions into the navigation."""
    sys.path.insert(0, str(ROOT))  # mkdocs undoes what a hook changes while it is loaded
    for section in config.nav or []:
        if "Decisions" in section:
            section["Decisions"] = ["decisions/index.md", *_decisions()]
    return config


def _decisions() -> list[dict[str, Any]]:
    return [
        {area: [f"decisions/{folder}/{path.name}" for path in pages]}
        for folder, area, pages in generate.decisions()
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures, which lie outside of the folder of pages."""
    for picture in sorted((ROOT / "results").glob("*.svg")):
        uri = f"{PICTURES}/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what is generated, and let links to pictures find them."""
    here = posixpath.dirname(page.file.src_uri) or "."
    pictures = posixpath.relpath(PICTURES, here)
    markdown = re.sub(r"\]\((?:\.\./)+results/(\S+\.svg)\)", rf"]({pictures}/\1)", markdown)
    return generate.fill(markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would load anything from the network."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        found = FROM_NETWORK.search(path.read_text(encoding="utf-8"))
        if found is not None:
            raise PluginError(f"{path.name} loads from the network: {found[0][:200]}")
