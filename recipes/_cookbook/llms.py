"""The pages for readers that are programs: plain Markdown, and `llms.txt`.

The format of `llms.txt` is that of llmstxt.org: a title, a summary, sections of links.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from recipes._cookbook.catalogue import TOPICS, recipes

SUMMARY = (
    "Async patterns for FastAPI as it is today. Each recipe is one complete program, "
    "run by tests on real servers, with the naive form that fails beside it."
)
RECIPE = re.compile(r"recipes/(\w+)/(\w+)\.md")

# What only a browser needs: the panel, wrappers, attributes of headings and fences.
_PANEL = re.compile(r"^## Try it.*?</div>\n+", re.DOTALL | re.MULTILINE)
_WRAPPER = re.compile(r"^</?(?:div|section)\b[^>]*>\n+", re.MULTILINE)
_HEADING = re.compile(r"^(#+ .+?) \{[^}\n]*\}$", re.MULTILINE)
_FENCE = re.compile(r"^(`{3,}) \{ \.(\w+)[^}\n]*\}$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One page of the site."""

    uri: str
    """In the docs folder and in the site, such as `recipes/sse/feed.md`."""
    title: str
    text: str
    """As it was written, without front matter."""


def plain(text: str) -> str:
    """`text` as Markdown that needs no browser."""
    text = _WRAPPER.sub("", _PANEL.sub("", text))
    return _FENCE.sub(r"\1\2", _HEADING.sub(r"\1", text)).strip() + "\n"


def index(name: str, pages: Iterable[Page], site_url: str) -> str:
    """`llms.txt`: every page, recipes first, with the need that each one answers."""
    found = {page.uri: page for page in pages if not page.uri.startswith("proofs/")}
    parts = [f"# {name}", f"> {SUMMARY}"]
    for topic, label in TOPICS.items():
        rows = [
            f"- [{r.title}]({site_url}recipes/{r.name}.md): Use when {r.use_when}"
            for r in recipes()
            if r.topic == topic and f"recipes/{r.name}.md" in found
        ]
        if rows:
            parts.append("\n".join([f"## {label}", "", *rows]))
    others = [
        f"- [{page.title}]({site_url}{uri})"
        for uri, page in found.items()
        if not RECIPE.fullmatch(uri)
    ]
    parts.append("\n".join(["## Guides and more", "", *others]))
    return "\n\n".join(parts) + "\n"
