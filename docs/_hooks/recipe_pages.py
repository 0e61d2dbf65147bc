"""Hands the generated pages to MkDocs, and gives it the navigation."""

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from recipes._cookbook import llms, pages
from recipes._cookbook.catalogue import problems, reread

log = get_plugin_logger(__name__)
built: dict[str, llms.Page] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the recipes again at each build of `mkdocs serve`."""
    reread()
    built.clear()
    for problem in problems():
        log.warning(str(problem))  # a strict build fails
    config.nav = pages.nav()
    return config


@event_priority(100)  # before plugins that look for pages in their own on_files
def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made from recipes and from files at the root."""
    docs = Path(config.docs_dir)
    for made in pages.generated():
        written = files.get_file_from_path(made.uri)
        if written is not None:
            files.remove(written)
        file = File.generated(config, made.uri, content=made.text)
        # Relative to the docs folder, as the link of a hand-written page is.
        file.edit_uri = Path(os.path.relpath(made.source, docs)).as_posix()
        files.append(file)
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, **_: object
) -> None:
    """Keep the text of each page for readers that are programs."""
    uri = page.file.src_uri
    built[uri] = llms.Page(uri, str(page.title or config.site_name), markdown)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Offer the page as Markdown; `copypage.js` adds a button beside the link."""
    away = Path(page.file.dest_uri).parent.as_posix()
    link = os.path.relpath(page.file.src_uri, away)
    return f'<p class="as-markdown"><a href="{link}">View as Markdown</a></p>\n{html}'


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write a Markdown file for each page, and `llms.txt`."""
    site = Path(config.site_dir)
    for page in built.values():
        path = site / page.uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(llms.plain(page.text), "utf-8")
    text = llms.index(config.site_name, built.values(), config.site_url or "")
    (site / "llms.txt").write_text(text, "utf-8")
