"""Hands the generated pages to MkDocs, and gives it the navigation."""

import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files

from recipes._cookbook import pages
from recipes._cookbook.catalogue import problems, reread

log = get_plugin_logger(__name__)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the recipes again at each build of `mkdocs serve`."""
    reread()
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
