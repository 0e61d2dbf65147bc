"""Each rule of a recipe: it holds for all, and a broken one is named with its line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes._cookbook import rules
from recipes._cookbook.catalogue import (
    EVIDENCE,
    ROOT,
    Problem,
    Request,
    UnknownRecipe,
    find,
    parse,
    recipe_paths,
    recipes,
)

GOOD = ROOT / "recipes" / "sse" / "feed.py"
TITLE = "Stream a live feed that resumes after a dropped connection"


def test_recipes_are_found() -> None:
    assert GOOD in recipe_paths()
    assert len(recipes()) == len(recipe_paths())


def test_every_recipe_keeps_the_rules() -> None:
    assert [str(problem) for problem in rules.check_all()] == []


def test_a_recipe_is_parsed_whole() -> None:
    recipe = parse(GOOD)
    assert recipe.name == "sse/feed"
    assert recipe.title == TITLE
    assert recipe.summary.startswith("The feed keeps its last events")
    assert recipe.use_when.startswith("a page shows live updates")
    assert recipe.not_when.startswith("the client also talks")
    assert len(recipe.gotchas) >= 5
    assert recipe.gotchas[0].endswith("raised in the generator gives an empty 200.")
    assert recipe.requests == (
        Request("SSE", "/feed"),
        Request("POST", "/events", '{"message": "hello"}', "201"),
    )
    assert "EventSource" in recipe.keywords
    assert "websocket/rooms" in recipe.related
    assert recipe.dependencies == ("fastapi[standard]>=0.165",)
    assert recipe.servers == ()
    assert recipe.pattern.startswith("import asyncio\n")
    assert recipe.evidence.startswith("def main() -> None:\n")
    assert recipe.source.count(EVIDENCE) == 1


Edit = Callable[[str], str]


def replace(old: str, new: str) -> Edit:
    def edit(source: str) -> str:
        assert old in source, old
        return source.replace(old, new, 1)

    return edit


def append(text: str) -> Edit:
    return lambda source: source + text


# What is broken, words of the line that is named, words of the advice.
BROKEN: dict[str, tuple[Edit, str, str]] = {
    "no header": (replace("# /// script\n", ""), "# requires", "PEP 723 header"),
    "header is not TOML": (replace('"]\n', "\n"), "# ///", "not TOML"),
    "other Python": (replace(">=3.11", ">=3.12"), ">=3.12", "requires-python"),
    "other floor": (replace(">=0.165", ">=0.150"), ">=0.150", "pyproject.toml says"),
    "unknown package": (
        replace('0.165"]', '0.165", "quart>=1"]'), "quart", "add 'quart>=1' to"
    ),
    "syntax": (replace("import asyncio\n", "import asyncio as\n"), "asyncio", "parse"),
    "no docstring": (lambda s: "".join(s.split('"""', 2)[::2]), "#",
                     "add a module docstring"),
    "no title": (replace(f"{TITLE}.", "Feed."), "Feed.", "title"),
    "no period": (replace("a dropped connection.", "a break"), "a break", "title"),
    "no use when": (replace("**Use when**", "Use when"), '"""', "**Use when**"),
    "no not when": (replace("**Not when**", "Not when"), "**Use", "**Not when**"),
    "no gotchas": (replace("Gotchas:", "Notes:"), '"""', "Gotchas:"),
    "gotcha without dash": (replace("- Not cov", "Not cov"), "Not", "list item"),
    "no requests": (replace("Try it:", "Try:"), '"""', "Try it:"),
    "bad request": (replace("    SSE /feed", "    FETCH /feed"), "FETCH", "METHOD"),
    "no keywords": (replace("Keywords:", "Words:"), '"""', "Keywords:"),
    "few keywords": (
        replace("events, EventSource, reconnect, live updates, push", "events"),
        "Keywords:", "at least 3",
    ),
    "no related": (replace("Related:", "See:"), '"""', "Related:"),
    "unknown related": (replace("websocket/rooms", "websocket/room"), "Related:",
                        "'websocket/room' does not exist"),
    "related to itself": (replace("websocket/rooms", "sse/feed"), "Related:",
                          "does not exist"),
    "no evidence line": (replace(EVIDENCE, ""), "", EVIDENCE),
    "two evidence lines": (append(f"\n{EVIDENCE}\n"), EVIDENCE, "exactly one"),
    "no app": (replace("app = FastAPI(", "api = FastAPI("), "", "assign `app"),
    "no main": (replace("def main()", "def proof()"), "", "define main()"),
    "no main guard": (
        replace('if __name__ == "__main__":\n    main()', "main"), "", "__name__"
    ),
    "no printed evidence": (lambda s: s.replace("# > ", "# "), "", "--update-examples"),
    "too many lines": (append("\n" * 150), "", "at most 150"),
    "too many tokens": (append(f"# {'x' * 7000}\n"), "xxx", "at most 1600"),
    "undeclared import": (
        replace("import asyncio\n", "import sqlalchemy\n"), "sqlalchemy", "'sqlalchemy'"
    ),
    "undeclared import in main": (
        replace("from fastapi.testclient", "from mkdocs"), "mkdocs", "'mkdocs'"
    ),
    "undeclared driver": (
        replace("HISTORY = 1000", 'URL = "postgresql+asyncpg://"'), "URL", "'asyncpg'"
    ),
    "imports a recipe": (
        replace("import asyncio\n", "import recipes.sse\n"), "recipes.sse", "alone"
    ),
    "relative import": (
        replace("import asyncio\n", "from . import x\n"), "from . import", "alone"
    ),
    "environment at import": (
        replace("HISTORY = 1000", 'import os\nH = os.environ["X"]'), "H =", "lifespan"
    ),
    "getenv in a class body": (
        replace("class Feed:", 'import os\nclass Feed:\n    H = os.getenv("X")'),
        "H =", "lifespan",
    ),
    "demo without its mark": (
        replace("HISTORY = 1000", "HISTORY = main"), "HISTORY = main", "# demo"
    ),
    "server without advice": (
        replace("HISTORY = 1000", 'NAME = "REDIS_URL"'), "REDIS_URL", "example URL"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    edit, line, advice = BROKEN[name]
    source = edit(GOOD.read_text())
    problems = problems_of(tmp_path / "sse" / "feed.py", source)
    [named, *_] = [p for p in problems if advice in p.message]
    assert str(named).startswith(f"{tmp_path}/sse/feed.py:{named.line}: ")
    assert line in source.splitlines()[named.line - 1]


def problems_of(path: Path, source: str) -> list[Problem]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    try:
        recipe = parse(path)
    except Problem as problem:
        return [problem]
    return rules.check(recipe)


def test_the_unchanged_copy_breaks_no_rule(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "sse" / "feed.py", GOOD.read_text()) == []


@pytest.mark.parametrize("stem", ["queue", "redis", "anyio", "json"])
def test_a_stem_that_hides_a_module_is_named(tmp_path: Path, stem: str) -> None:
    problems = problems_of(tmp_path / "sse" / f"{stem}.py", GOOD.read_text())
    expected = stem != "redis" or "redis" in sys.modules
    assert any("choose another file name" in p.message for p in problems) == expected


def test_an_unknown_topic_is_named(tmp_path: Path) -> None:
    problems = problems_of(tmp_path / "misc" / "feed.py", GOOD.read_text())
    assert any("unknown topic 'misc'" in p.message for p in problems)


def test_a_recipe_without_its_tests_is_named(tmp_path: Path) -> None:
    problems = problems_of(tmp_path / "sse" / "other.py", GOOD.read_text())
    messages = [p.message for p in problems]
    assert any("tests/behavior/sse/test_other.py" in m for m in messages)
    assert any("tests/behavior/sse/naive_other.py" in m for m in messages)


@pytest.mark.parametrize(
    "name", ["sse/feed", "feed", "recipes/sse/feed.py", "sse/feed.py"]
)
def test_find_takes_the_usual_spellings(name: str) -> None:
    assert find(name).name == "sse/feed"


@pytest.mark.parametrize("name", ["sse/fed", "feeed", "ssefeed"])
def test_find_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UnknownRecipe, match=r"Did you mean .*sse/feed"):
        find(name)


def test_find_has_no_suggestion_for_nonsense() -> None:
    with pytest.raises(UnknownRecipe, match="See `recipes list`"):
        find("zzzzzz")


IMPORT = """
import sys
path = sys.argv[1]
watched = ("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename", "os.system",
           "tempfile.", "_thread.start_new_thread", "signal.")

def hook(event, args):
    writes = event == "open" and args[2] and args[2] & 0o1103  # write, create, truncate
    if not (writes or event.startswith(watched)):
        return
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_filename == path:
            line = f"{path}:{frame.f_lineno}"
            print(f"{line}: {event} at import: move it to the lifespan")
        frame = frame.f_back

import runpy
sys.addaudithook(hook)
before = sys.stdout
names = runpy.run_path(path, run_name="imported")
"""


def effects_of_import(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", IMPORT, str(path)],
        check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_import_has_no_effect(path: Path) -> None:
    assert effects_of_import(path) == ""


@pytest.mark.parametrize(
    "effect",
    [
        "print('hello')",
        "__import__('socket').socket()",
        "open('/dev/null', 'w').close()",
        "__import__('subprocess').run(['true'])",
        "__import__('threading').Thread(target=print, args=('',), daemon=True).start()",
        "__import__('warnings').warn('old')",
    ],
)
def test_an_effect_at_import_is_noticed(tmp_path: Path, effect: str) -> None:
    module = tmp_path / "recipe.py"
    module.write_text(f"x = 1\n{effect}\n")
    found = effects_of_import(module)
    assert found
    if "print" not in effect:
        assert f"{module}:2" in found or f'{module}", line 2' in found
