"""The pages: complete, searchable, without a request to another host."""

import html
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest
from markdown import markdown  # type: ignore[import-untyped, unused-ignore]

from recipes._cookbook import pages
from recipes._cookbook.catalogue import ROOT, TOPICS, Recipe, Request, recipes
from tests.harness.site import build, built

each_recipe = pytest.mark.parametrize(
    "recipe_", recipes(), ids=lambda recipe: recipe.name
)


class Tags(HTMLParser):
    """Start tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.getbasetemp() / "site")


@each_recipe
def test_page_is_in_the_order_that_a_reader_in_a_hurry_wants(recipe_: Recipe) -> None:
    text = pages.page(recipe_)
    without_code = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^## (.+?)(?: \{.*\})?$", without_code, re.MULTILINE)
    assert headings[:4] == ["Try it", "The pattern", "Evidence", "Gotchas"]
    assert text.index("**Use when**") < text.index("## Try it")


def panel_requests(text: str) -> list[dict[str, str]]:
    panel = next(a for _, a in Tags(text).found if a.get("class") == "try-it")
    found: list[dict[str, str]] = json.loads(panel["data-requests"] or "")
    return found


def unlinked(text: str) -> str:
    """Names of recipes in prose become links: `sse/feed`."""
    return re.sub(r"\[(`\w+/\w+`)\]\([^)]+\)", r"\1", text)


def test_names_of_recipes_become_links() -> None:
    text = pages.page(replace(recipes()[0], summary="Not `text/html`, see `sse/feed`."))
    assert "Not `text/html`, see [`sse/feed`](../sse/feed.md)." in text


@each_recipe
def test_page_has_every_part(recipe_: Recipe) -> None:
    text = unlinked(pages.page(recipe_))
    naive = recipe_.naive_path.read_text("utf-8") if recipe_.naive_path.exists() else ""
    parts = [
        f"\n# {recipe_.title}\n",
        recipe_.summary,
        f"**Use when** {recipe_.use_when}",
        f"**Not when** {recipe_.not_when}",
        f'data-recipe="{recipe_.name}"',
        f"\n{recipe_.pattern}\n```",
        f"uv run recipes/{recipe_.name}.py",
        f"\n{recipe_.evidence}\n```",
        *(f"- {gotcha}" for gotcha in recipe_.gotchas),
        *(line for line in naive.splitlines() if line.startswith(("@", "async def"))),
        *(f'"{requirement}"' for requirement in recipe_.dependencies),
        *recipe_.keywords,
    ]
    assert [part for part in parts if part not in text] == []
    known = {other.name for other in recipes()}
    for name in known & set(recipe_.related):
        assert f"](../{name}.md)" in pages.page(recipe_)


@each_recipe
def test_panel_carries_the_requests(recipe_: Recipe) -> None:
    found = panel_requests(pages.page(recipe_))
    assert [Request(**request) for request in found] == list(recipe_.requests)


def test_requests_cannot_leave_their_attribute() -> None:
    hostile = Request("POST", "/\"'><script>x</script>", "{'&quot;': \"</div>\"}")
    recipe = replace(recipes()[0], requests=(hostile,))
    assert [Request(**r) for r in panel_requests(pages.panel(recipe))] == [hostile]
    assert "<script>" not in pages.panel(recipe)


@pytest.mark.parametrize("fence", ["```", "`````", "~~~"])
def test_code_cannot_leave_its_fence(fence: str) -> None:
    code = f'"""Docs.\n\n{fence}\n## Not a heading\n{fence}python\n"""'
    extensions = ["attr_list", "md_in_html", "pymdownx.superfences"]
    text = pages.page(replace(recipes()[0], pattern=code))
    rendered = markdown(text, extensions=extensions)
    assert "## Not a heading" in re.sub("<[^>]+>", "", rendered)
    assert "Not a heading</h2>" not in rendered


@each_recipe
def test_page_links_its_tests_and_they_are_shown(recipe_: Recipe) -> None:
    source = recipe_.test_path.read_text("utf-8")
    names = re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE)
    found, shown = pages.page(recipe_), pages.proof(recipe_)
    link = f"](../../proofs/{recipe_.name}.md#"
    assert re.findall(re.escape(link) + r"(\w+)\)", found) == names
    assert re.findall(r"^## .+ \{ #(\w+) \}$", shown, re.MULTILINE) == names
    lines = [line for line in source.splitlines() if line.strip()]
    assert [line for line in shown.splitlines() if line in lines] == lines


def test_nav_has_every_page_once() -> None:
    def leaves(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        children = item.values() if isinstance(item, dict) else item
        assert not isinstance(children, str)
        return list(chain.from_iterable(map(leaves, children)))  # type: ignore[call-overload]

    generated = (page.uri for page in pages.generated())
    made = {uri for uri in generated if re.fullmatch(r"(?!proofs/).*\.md", uri)}
    written = {path.relative_to(pages.DOCS).as_posix() for path in markdown_pages()}
    assert sorted(leaves(pages.nav())) == sorted(made | written)


def markdown_pages() -> list[Path]:
    return list(pages.DOCS.rglob("*.md"))


def test_strict_build_passes(site: Path) -> None:
    for recipe in recipes():
        assert (site / f"recipes/{recipe.name}/index.html").exists()
        download = site / f"recipes/{recipe.name}.py"
        assert download.read_bytes() == recipe.path.read_bytes()
    assert "Add a recipe" in (site / "contributing/index.html").read_text("utf-8")


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        tags = Tags(path.read_text("utf-8")).found
        loaded = [
            attributes.get("src") or attributes.get("href") or ""
            for tag, attributes in tags
            if tag in {"script", "img", "iframe", "source", "video", "embed", "object"}
            or (tag == "link" and attributes.get("rel") not in {"canonical", "next"})
        ]
        assert [url for url in loaded if "//" in url] == [], path
        # The theme would load a diagram library from a CDN for these.
        assert not any("mermaid" in (a.get("class") or "") for _, a in tags), path
    for path in site.rglob("*.css"):
        styles = path.read_text("utf-8")
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", styles), path
    assert "//" not in strip_comments(pages.DOCS / "assets/tryit.js")


def strip_comments(path: Path) -> str:
    text = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"^\s*//.*$|\s// .*$", "", text, flags=re.MULTILINE)


def test_search_finds_keywords_and_leaves_code_out(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text("utf-8"))
    found = {entry["location"]: entry for entry in index["docs"]}
    for recipe in recipes():
        assert found[f"recipes/{recipe.name}/"]["tags"] == list(recipe.keywords)
        texts = "".join(
            entry["text"]
            for location, entry in found.items()
            if location.startswith(f"recipes/{recipe.name}/")
        )
        assert "def main" not in texts
        first_words = html.escape(recipe.gotchas[0].split("`")[0], quote=False)
        assert first_words.strip() in texts


def test_catalogue_links_what_exists(site: Path) -> None:
    text = (site / "catalogue/index.html").read_text("utf-8")
    linked = {a.get("href") for tag, a in Tags(text).found if tag == "a"}
    assert {f"../recipes/{recipe.name}/" for recipe in recipes()} <= linked
    written = (pages.DOCS / "catalogue.md").read_text("utf-8")
    planned = len(re.findall(r"^\| `\w+/", written, re.MULTILINE)) - len(recipes())
    assert text.count("<em>planned</em>") == planned


def test_every_recipe_is_in_the_catalogue() -> None:
    text = (pages.DOCS / "catalogue.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)/(\w+)` \| .+ \|$", text, re.MULTILINE)
    names = [f"{topic}/{stem}" for topic, stem in rows]
    assert len(names) == len(set(names))
    assert {recipe.name for recipe in recipes()} <= set(names)
    assert {topic for topic, _ in rows} <= set(TOPICS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `recipes docs DIR` writes, and a configuration without the hook."""
    folder = tmp_path_factory.mktemp("written")
    pages.write(folder / "docs")
    (folder / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: []\nwatch: []\n"
    )
    return folder


def build_written(folder: Path) -> subprocess.CompletedProcess[str]:
    return build(folder / "site", config=folder / "mkdocs.yml")


def test_written_pages_are_the_same_site(written: Path, site: Path) -> None:
    done = build_written(written)
    assert done.returncode == 0, done.stdout + done.stderr

    def files(root: Path) -> set[str]:
        found = {path.relative_to(root).as_posix() for path in root.rglob("*")}
        # What the hook adds for programs: there, the pages themselves are Markdown.
        return {path for path in found if not path.endswith((".md", "llms.txt"))}

    assert files(written / "site") == files(site)


def test_broken_links_fail_the_build(written: Path) -> None:
    planted = {
        "recipes/no/such.md": "is not found among documentation files",
        "catalogue.md#no-such": "does not contain an anchor",
        "/catalogue/": "contains an absolute link",
        "catalogue/nothing": "contains an unrecognized relative link",
    }
    path = written / "docs/index.md"
    intact = path.read_text("utf-8")
    path.write_text(intact + "".join(f"\n[x]({link})\n" for link in planted), "utf-8")
    try:
        done = build_written(written)
    finally:
        path.write_text(intact, "utf-8")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for link, complaint in planted.items():
        assert any(f"'{link}'" in line and complaint in line for line in lines), lines


def test_every_page_is_there_as_markdown(site: Path) -> None:
    for page in site.rglob("index.html"):
        link = next(
            attributes["href"]
            for tag, attributes in Tags(page.read_text("utf-8")).found
            if tag == "a" and (attributes.get("href") or "").endswith(".md")
        )
        assert link
        text = (page.parent / link).read_text("utf-8")
        assert re.search("^# ", text, re.MULTILINE), link
        assert "data-search" not in text
        assert "<div" not in text


@each_recipe
def test_markdown_of_a_recipe_has_its_code(recipe_: Recipe, site: Path) -> None:
    text = (site / f"recipes/{recipe_.name}.md").read_text("utf-8")
    assert f"```python\n{recipe_.pattern}\n```" in text
    assert f"```python\n{recipe_.evidence}\n```" in text
    assert "Try it" not in text
    for gotcha in recipe_.gotchas:
        assert f"- {gotcha}" in unlinked(text)


def test_llms_txt_lists_every_page_once(site: Path) -> None:
    text = (site / "llms.txt").read_text("utf-8")
    links = re.findall(r"^- \[.+?\]\((\S+?\.md)\)", text, re.MULTILINE)
    pages_there = {
        path.relative_to(site).as_posix()
        for path in site.rglob("*.md")
        if "proofs" not in path.parts
    }
    assert sorted(links) == sorted(pages_there)
    for recipe in recipes():
        row = f"(recipes/{recipe.name}.md): Use when {recipe.use_when}"
        assert row in text
