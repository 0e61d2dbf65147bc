"""Recipes as Markdown pages, for the site and for `recipes docs DIR`.

Nothing here knows a site generator: a hook hands the pages to MkDocs, and `write`
puts the same pages on disk for generators that have no hooks.
"""

import ast
import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from recipes._cookbook import proofs
from recipes._cookbook.catalogue import (
    ROOT,
    TOPICS,
    Problem,
    Recipe,
    Request,
    problems,
    recipes,
)
from recipes._cookbook.proofs import Entry, Proof
from recipes._cookbook.skill import SKILL

DOCS = ROOT / "docs"
INDEX = "recipes/index.md"
CATALOGUE = "catalogue.md"
ORIGINAL = "guides/from_the_original.md"
PATTERNS = "<!-- patterns -->"
AUDIT = "guides/audit.md"
RULES = "<!-- rules -->"

# A static host answers this; `recipes serve` answers the same path with what runs.
STATUS = "live/status.json"
NOTHING_RUNS = '{"recipes": {}}\n'

# A recipe that prose mentions: `sse/feed`.
_MENTION = re.compile(r"`(\w+/\w+)`(?!\])")

# A section that says nothing of its own: it would be one more hit for each tag.
_UNSEARCHED = '{ data-search-exclude="" }'

# A page without siblings needs no navigation beside it.
_ALONE = "---\nhide: [navigation]\n---\n\n"

# A catalogue row starts with the name of its recipe: | `sse/feed` | …
_ROW = re.compile(r"^\| `(\w+/\w+)` \|", re.MULTILINE)


@dataclass(frozen=True)
class Generated:
    """A file of the docs folder that is made from another one."""

    uri: str
    """Where it goes in the docs folder, such as `recipes/sse/feed.md`."""
    text: str
    source: Path
    """What a reader edits to change it."""


def generated() -> Iterator[Generated]:
    """Every file of the docs folder that is not written by hand in `docs/`."""
    for recipe in recipes():
        yield Generated(_uri(recipe), page(recipe), recipe.path)
        download = f"recipes/{recipe.name}.py"
        yield Generated(download, recipe.source, recipe.path)
        yield Generated(f"proofs/{recipe.name}.md", proof(recipe), recipe.test_path)
    for problem in problems():
        yield _broken(problem)
    for uri, made in (CATALOGUE, catalogue), (ORIGINAL, original), (AUDIT, audit):
        written = DOCS / uri
        yield Generated(uri, made(written.read_text("utf-8")), written)
    yield Generated(INDEX, index(), ROOT / "recipes")
    for path in _root_pages():
        text = f"{_ALONE}{path.read_text('utf-8')}"
        yield Generated(path.name.lower(), text, path)
    yield Generated(STATUS, NOTHING_RUNS, Path(__file__))


def _broken(problem: Problem) -> Generated:
    """In the place of the page of a recipe that cannot be read."""
    path = problem.path
    text = f"# {path.stem}\n\nThis recipe cannot be read.\n\n```\n{problem}\n```\n"
    return Generated(f"recipes/{path.parent.name}/{path.stem}.md", text, path)


def write(directory: Path) -> None:
    """Write a complete docs folder: hand-written pages, assets and generated files.

    Files that are there already are replaced, and none is deleted.
    """
    if directory.resolve().is_relative_to(DOCS):
        raise OSError(f"{directory} holds the pages' sources: name another folder.")
    hooks = shutil.ignore_patterns("_*")
    try:
        shutil.copytree(DOCS, directory, ignore=hooks, dirs_exist_ok=True)
    except shutil.Error as error:  # its text is the list of all that went wrong
        [(_, _, reason), *_] = error.args[0]
        raise OSError(reason) from None
    for made in generated():
        path = directory / made.uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.text, "utf-8")


def nav() -> list[Any]:
    """The `nav` of mkdocs.yml; a page without a label shows its own title."""
    topics = [{label: found} for label, found in _pages_by_topic()]
    guides = sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.glob("guides/*.md")
    )
    about: list[Any] = [
        {path.stem.capitalize(): path.name.lower()} for path in _root_pages()
    ]
    return [
        {"Home": "index.md"},
        {"Recipes": [INDEX, *topics]},
        {"Guides": guides},
        {"Catalogue": CATALOGUE},
        *about,
    ]


def index() -> str:
    """All recipes by topic, each with the need that it answers."""
    lead = (
        "Each is one file that runs: the pattern, the evidence, and what still goes "
        "wrong. Search finds them by symptom and by error message, too."
    )
    parts = [_front_matter("Recipes", lead), "# Recipes", lead]
    for topic, label in TOPICS.items():
        found = [recipe for recipe in recipes() if recipe.topic == topic]
        if found:
            parts.append(f"## {label}")
        parts += [
            f"[{recipe.title}]({recipe.name}.md)\n:   Use when {recipe.use_when}"
            for recipe in found
        ]
    return "\n\n".join(parts) + "\n"


def catalogue(text: str) -> str:
    """The catalogue page: names of recipes become links, the others are planned."""
    names = {recipe.name for recipe in recipes()}

    def row(match: re.Match[str]) -> str:
        name = match[1]
        shown = (
            f"[`{name}`](recipes/{name}.md)" if name in names else f"`{name}` *planned*"
        )
        return f"| {shown} |"

    return _ROW.sub(row, text)


def page(recipe: Recipe) -> str:
    """The page of one recipe."""
    parts = [
        _front_matter(recipe.title, recipe.summary, recipe.keywords),
        f"# {recipe.title}",
        _linked(recipe.summary),
        _when(recipe),
        f"## Try it {_UNSEARCHED}\n\n{panel(recipe)}",
        _pattern(recipe),
        _evidence(recipe),
        _gotchas(recipe),
        _naive(recipe),
        _proofs(recipe),
        _dependencies(recipe),
        _related(recipe),
        f"*Keywords: {', '.join(recipe.keywords)}*",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def panel(recipe: Recipe) -> str:
    """The Try it panel: data for `tryit.js`, and what a reader sees without it."""
    requests = json.dumps([asdict(request) for request in recipe.requests])
    lines = "".join(
        f"<li><code>{html.escape(_line(r))}</code></li>" for r in recipe.requests
    )
    return (
        f'<div class="try-it" data-recipe="{html.escape(recipe.name)}" '
        f'data-search-exclude data-requests="{html.escape(requests)}">\n'
        "<p>Run <code>uv run recipes serve</code> and open this page there: "
        "you can then send these requests from here.</p>\n"
        f"<ul>{lines}</ul>\n"
        "</div>"
    )


def _line(request: Request) -> str:
    return f"{request.method} {request.path} {request.body}".rstrip()


def _front_matter(title: str, description: str, tags: tuple[str, ...] = ()) -> str:
    # JSON strings are YAML strings. The description ends up between double quotes in
    # HTML, where the theme does not escape it.
    line = " ".join(description.replace("`", "").replace('"', "'").split())
    lines = [
        "---",
        f"title: {json.dumps(title.replace('`', ''), ensure_ascii=False)}",
        f"description: {json.dumps(line, ensure_ascii=False)}",
    ]
    if tags:
        # Tags weigh most in search. The page lists them at its end.
        lines += [f"tags: {json.dumps(tags, ensure_ascii=False)}", "hide: [tags]"]
    return "\n".join([*lines, "---"])


def _when(recipe: Recipe) -> str:
    return (
        '<div class="when" markdown>\n\n'
        f"**Use when** {_linked(recipe.use_when)}\n\n"
        f"**Not when** {_linked(recipe.not_when)}\n\n"
        "</div>"
    )


def _pattern(recipe: Recipe) -> str:
    return (
        f"## The pattern {_UNSEARCHED}\n\n{_code(recipe.pattern, _shown(recipe.path))}"
    )


def _evidence(recipe: Recipe) -> str:
    lead = (
        f"[`{recipe.stem}.py`]({recipe.stem}.py) is a program: it prints the lines "
        "marked `# >`, and a test compares them."
    )
    parts = [
        f"## Evidence {_UNSEARCHED}",
        lead,
        _console(f"uv run {_shown(recipe.path)}"),
    ]
    if recipe.servers:
        needed = " and ".join(f"`{name}`" for name in recipe.servers)
        parts += [
            f"It reads {needed}. This starts a throw-away server for it:",
            _console(f"uv run recipes run {recipe.name}"),
        ]
    parts.append(_code(recipe.evidence))
    return "\n\n".join(parts)


def _gotchas(recipe: Recipe) -> str:
    items = "\n".join(f"- {_linked(gotcha)}" for gotcha in recipe.gotchas)
    return f"## Gotchas\n\n{items}"


def _naive(recipe: Recipe) -> str:
    if not recipe.naive_path.exists():
        return ""
    symptom, code = _docstring_and_code(recipe.naive_path.read_text("utf-8"))
    return f"## The naive form\n\n{symptom}\n\n{_code(code, _shown(recipe.naive_path))}"


def _proofs(recipe: Recipe) -> str:
    lead = (
        "Each of these tests runs the pattern on a real server. Where it says what "
        "goes wrong, it shows that on the naive form first."
    )
    tests = "\n".join(
        f"- {_test_link(each, '../..')}" for each in proofs.proofs(recipe.test_path)
    )
    return f"## What the tests show\n\n{lead}\n\n{tests}" if tests else ""


def _test_link(found: Proof, root: str) -> str:
    """A link to a test, from a page that is `root` away from the docs folder."""
    return f"[{found.title}]({root}/proofs/{found.recipe}.md#{found.name})"


def proof(recipe: Recipe) -> str:
    """The page that shows the tests of one recipe."""
    if not recipe.test_path.exists():
        return f"# {recipe.title}\n\nNo test yet.\n"
    lines = recipe.test_path.read_text("utf-8").splitlines()
    parts = [
        f"---\ntitle: Tests of {recipe.name}\nsearch:\n  exclude: true\n---",
        f"# Tests of `{recipe.name}`",
        f"[{recipe.title}](../../{_uri(recipe)}): `{_shown(recipe.test_path)}`, run by",
        _console(f"uv run pytest {_shown(recipe.test_path)}"),
    ]
    above = 0
    for each in proofs.proofs(recipe.test_path):
        parts.append(_code("\n".join(lines[above : each.line - 1]).strip("\n")))
        parts.append(f"## {each.title} {{ #{each.name} }}")
        parts.append(_code("\n".join(lines[each.line - 1 : each.end])))
        above = each.end
    parts.append(_code("\n".join(lines[above:]).strip("\n")))
    empty = _code("")
    return "\n\n".join(part for part in parts if part != empty) + "\n"


def original(text: str) -> str:
    """`text` with the patterns of the original: what was wrong, and what to use."""
    entries = {entry.defect.number: entry for entry in proofs.ledger()}
    parts = []
    for section, found in groupby(proofs.original(), key=lambda each: each.section):
        parts.append(f"## {section}")
        for pattern in found:
            parts.append(f"### {pattern.title}")
            parts.append(f"Use {' and '.join(map(_recipe_link, pattern.recipes))}.")
            wrong = [_defect(entries[each.number]) for each in pattern.defects]
            parts.append("\n".join(wrong) or "Nothing was wrong with it.")
    return text.replace(PATTERNS, "\n\n".join(parts))


def audit(text: str) -> str:
    """`text` with a table of the audit's rules."""
    rows = ["| rule | severity | what happens | recipe |", "|---|---|---|---|"]
    for path in sorted((SKILL / "audit" / "rules").glob("*.yml")):
        rule = yaml.safe_load(path.read_text("utf-8"))
        named = re.findall(r"recipes/(\w+/\w+)\.py", rule["note"])
        recipe = ", ".join(map(_recipe_link, named))
        rows.append(
            f"| `{rule['id']}` | {rule['severity']} | {rule['message']} | {recipe} |"
        )
    return text.replace(RULES, "\n".join(rows))


def _recipe_link(name: str) -> str:
    """A link from a guide to a recipe; just its name while it is not written."""
    titles = {recipe.name: recipe.title for recipe in recipes()}
    return f"[{titles[name]}](../recipes/{name}.md)" if name in titles else f"`{name}`"


def _defect(entry: Entry) -> str:
    tests = ", ".join(_test_link(each, "..") for each in entry.proofs)
    said = f"Test: {tests}." if tests else f"Not tested: {entry.defect.untested}"
    return f"- {entry.defect.number}. {entry.defect.symptom} {said}"


def _dependencies(recipe: Recipe) -> str:
    wanted = " ".join(f'"{requirement}"' for requirement in recipe.dependencies)
    return (
        f"## Dependencies {_UNSEARCHED}\n\n"
        f"Python {recipe.requires_python}\n\n"
        f"{_console(f'uv add {wanted}')}\n\n{_console(f'pip install {wanted}')}"
    )


def _related(recipe: Recipe) -> str:
    known = {other.name: other for other in recipes()}
    links = [
        f"- [{known[name].title}](../{name}.md)"
        for name in recipe.related
        if name in known
    ]
    return "\n".join([f"## Related {_UNSEARCHED}", "", *links]) if links else ""


def _linked(prose: str) -> str:
    """`prose`, with the names of recipes as links."""
    known = {recipe.name for recipe in recipes()}

    def link(match: re.Match[str]) -> str:
        name = match[1]
        return f"[{match[0]}](../{name}.md)" if name in known else match[0]

    return _MENTION.sub(link, prose)


def _docstring_and_code(source: str) -> tuple[str, str]:
    module = ast.parse(source)
    docstring = ast.get_docstring(module)
    if docstring is None:
        return "", source.strip("\n")
    code = source.splitlines()[module.body[0].end_lineno :]
    return docstring, "\n".join(code).strip("\n")


def _code(code: str, title: str = "") -> str:
    """A fence that no backticks in `code` can close, left out of the search index."""
    runs = [len(run) for run in re.findall("`+", code)]
    fence = "`" * max([3, *(length + 1 for length in runs)])
    name = f'title="{title}" ' if title else ""
    return f'{fence} {{ .python {name}data-search-exclude="" }}\n{code}\n{fence}'


def _console(command: str) -> str:
    return f"```sh\n{command}\n```"


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _uri(recipe: Recipe) -> str:
    return f"recipes/{recipe.name}.md"


def _pages_by_topic() -> Iterator[tuple[str, list[str]]]:
    for topic, label in TOPICS.items():
        found = [_uri(recipe) for recipe in recipes() if recipe.topic == topic]
        if found:
            yield label, found


def _root_pages() -> list[Path]:
    """Pages that a repository keeps at its root."""
    paths = (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
    return [path for path in paths if path.exists()]
