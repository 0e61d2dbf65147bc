"""Each rule of a recipe: it holds for all, and a broken one is named with its line."""

import re
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


def below(statement: str, use: str) -> Edit:
    """The pattern uses what only the evidence defines."""
    edit = replace("HISTORY = 1000", f"HISTORY = {use}")
    return lambda source: f"{edit(source)}\n{statement}\n"


# What is broken, words of the line that is named, words of the advice.
BROKEN: dict[str, tuple[Edit, str, str]] = {
    "no header": (replace("# /// script\n", ""), "# requires", "PEP 723 header"),
    "header is not TOML": (replace('"]\n', "\n"), "# ///", "not TOML"),
    "other Python": (replace(">=3.11", ">=3.12"), ">=3.12", "requires-python"),
    "other floor": (replace(">=0.165", ">=0.150"), ">=0.150", "pyproject.toml says"),
    "unknown package": (
        replace('0.165"]', '0.165", "quart>=1"]'), "quart", "add 'quart>=1' to"
    ),
    "no requirement": (replace(">=0.165", " >>> 1"), "fastapi", "is no requirement"),
    "a number required": (
        replace('["fastapi[standard]>=0.165"]', "[1]"), "[1]", "list of strings"
    ),
    "not a list": (
        replace('["fastapi[standard]>=0.165"]', '"fastapi"'), "fastapi", "list of"
    ),
    "CRLF": (lambda s: s.replace("\n", "\r\n"), "# /// script", "CR"),
    "a CR": (replace("HISTORY = 1000", "HISTORY = 1000\r"), "HISTORY", "CR"),
    "syntax": (replace("import asyncio\n", "import asyncio as\n"), "asyncio", "parse"),
    "no docstring": (lambda s: "".join(s.split('"""', 2)[::2]), "#",
                     "add a module docstring"),
    "empty docstring": (lambda s: '""""""'.join(s.split('"""', 2)[::2]), "#",
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
    "two gotchas": (
        replace("Keywords:", "Gotchas:\n\n- More.\n\nKeywords:"), "Gotchas:", "second"
    ),
    "gotchas cut": (replace("- Not covered", "\n- Not covered"), "- Not", "cuts"),
    "text after not when": (
        replace("Gotchas:", "More words.\n\nGotchas:"), "More", "cuts"
    ),
    "keywords cut": (replace("Related:", "\nmore, words\nRelated:"), "more", "cuts"),
    "sections swapped": (
        lambda s: re.sub(r"(Keywords.*\n)(Related.*\n)", r"\2\1", s),
        "Related:", "below `Keywords",
    ),
    "no app": (replace("app = FastAPI(", "api = FastAPI("), "", "assign `app"),
    "app is None": (
        replace("app = FastAPI(lifespan=lifespan)", "app = None"), "", "assign `app"
    ),
    "app is only declared": (
        replace("app = FastAPI(lifespan=lifespan)", "app: FastAPI"), "", "assign `app"
    ),
    "no main": (replace("def main()", "def proof()"), "", "define main()"),
    "no main guard": (
        replace('if __name__ == "__main__":\n    main()', "main"), "", "__name__"
    ),
    "main guard in a comment": (
        replace('if __name__ == "__main__":\n    main()',
                '# if __name__ == "__main__":'), "", "__name__",
    ),
    "main guard that does not call main": (
        replace("    main()\n", "    pass\n"), "", "__name__"
    ),
    "evidence that says nothing": (
        lambda s: re.sub("# > .*", "# > ", s), "", "--update-examples"
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
    "environ by another name": (
        replace("HISTORY = 1000", "from os import environ as e\nH = e"),
        "H =", "lifespan",
    ),
    "environment in a default": (
        replace("HISTORY = 1000", 'import os\ndef f(x=os.getenv("X")) -> None: ...'),
        "def f", "lifespan",
    ),
    "environment in a keyword's default": (
        replace("HISTORY = 1000", 'import os\nF = lambda *, x=os.environb: x'),
        "F =", "lifespan",
    ),
    "environment in a decorator": (
        replace('@app.post("/events"', 'import os\n@app.post(os.environ["X"]'),
        "@app.post", "lifespan",
    ),
    "expandvars": (
        replace("HISTORY = 1000", 'import os\nH = os.path.expandvars("$H")'),
        "H =", "lifespan",
    ),
    "demo by annotated assignment": (
        below("LIMIT: int = 1", "LIMIT"), "= LIMIT", "'LIMIT'"
    ),
    "demo by import": (below("import json as j", "j"), "= j", "'j'"),
    "demo by tuple": (below("(A, B) = 1, 2", "B"), "= B", "'B'"),
    "demo mark in a string": (
        replace("HISTORY = 1000", 'HISTORY = main, "# demo"'), "HISTORY", "# demo"
    ),
    "demo mark in a remark": (
        replace("HISTORY = 1000", "HISTORY = main  # no # demo"), "HISTORY", "# demo"
    ),
    "demo without its mark": (
        replace("HISTORY = 1000", "HISTORY = main"), "HISTORY = main", "# demo"
    ),
    "server without advice": (
        replace("HISTORY = 1000", 'NAME = "REDIS_URL"'), "REDIS_URL", "example URL"
    ),
    "server in single quotes": (
        replace("HISTORY = 1000", "NAME = 'REDIS_URL'"), "REDIS_URL", "example URL"
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


def test_what_runs_later_may_read_the_environment(tmp_path: Path) -> None:
    later = "import os\nF = lambda: os.environ\ndef f(g=lambda: os.environ): ..."
    source = replace("HISTORY = 1000", f"HISTORY = 1000\n{later}")(GOOD.read_text())
    problems = problems_of(tmp_path / "sse" / "feed.py", source)
    assert [p for p in problems if "environment" in p.message] == []


def test_a_recipe_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feed.py"
    path.write_bytes(GOOD.read_bytes() + b"# caf\xe9\n")
    with pytest.raises(Problem, match="is not UTF-8"):
        parse(path)


def test_modules_that_nothing_would_list_are_named(tmp_path: Path) -> None:
    fine = ["__init__.py", "__main__.py", "_cookbook/deep/x.py", "sse/feed.py"]
    stray = ["_hidden/x.py", "sse/__init__.py", "sse/deep/x.py", "x.py"]
    for name in fine + stray:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [p.path.relative_to(tmp_path).as_posix() for p in rules.strays(tmp_path)]
    assert found == stray


def test_strays_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = Problem(tmp_path, 1, "stray")
    monkeypatch.setattr(rules, "strays", lambda: [stray])
    assert stray in rules.check_all()


@pytest.mark.parametrize("stem", ["my-feed", "Feed", "1feed", "_feed"])
def test_a_stem_that_is_no_module_name_is_named(tmp_path: Path, stem: str) -> None:
    problems = problems_of(tmp_path / "sse" / f"{stem}.py", GOOD.read_text())
    assert any("lower_case" in p.message for p in problems)


def test_the_unchanged_copy_breaks_no_rule(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "sse" / "feed.py", GOOD.read_text()) == []


@pytest.mark.parametrize("stem", ["queue", "redis", "anyio", "json"])
def test_a_stem_that_hides_a_module_is_named(tmp_path: Path, stem: str) -> None:
    problems = problems_of(tmp_path / "sse" / f"{stem}.py", GOOD.read_text())
    assert any("choose another file name" in p.message for p in problems)


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


@pytest.mark.parametrize("name", ["sse/fed", "feeed", "ssefeed", "SSE/FEED"])
def test_find_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UnknownRecipe, match=r"Did you mean .*sse/feed"):
        find(name)


def test_find_has_no_suggestion_for_nonsense() -> None:
    with pytest.raises(UnknownRecipe, match="See `recipes list`"):
        find("zzzzzz")


def test_find_does_not_echo_a_long_name() -> None:
    with pytest.raises(UnknownRecipe) as caught:
        find("z" * 5000)
    assert len(str(caught.value)) < 120


IMPORT = """
import runpy
import sys
import traceback
paths = sys.argv[1:]
watched = ("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename", "os.system",
           "tempfile.", "_thread.start_new_thread", "signal.")

def hook(event, args):
    writes = event == "open" and args[2] and args[2] & 0o1103  # write, create, truncate
    if not (writes or event.startswith(watched)):
        return
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_filename in paths:
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            print(f"{line}: {event} at import: move it to the lifespan")
        frame = frame.f_back

sys.addaudithook(hook)
for path in paths:
    try:
        runpy.run_path(path, run_name="imported")
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    print(f"--- {path}")
"""


def effects_of_import(*paths: Path) -> dict[Path, str]:
    """What each module does when it is imported, all in one new process."""
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", IMPORT, *map(str, paths)],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    found, rest = {}, done.stdout
    for path in paths:
        found[path], _, rest = rest.partition(f"--- {path}\n")
    return found | ({Path("at exit"): rest} if rest else {})


@pytest.fixture(scope="module")
def effects() -> dict[Path, str]:
    return effects_of_import(*recipe_paths())


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_import_has_no_effect(path: Path, effects: dict[Path, str]) -> None:
    assert effects[path] == ""
    assert Path("at exit") not in effects


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
    found = effects_of_import(module)[module]
    assert found
    if "print" not in effect:
        assert f"{module}:2" in found or f'{module}", line 2' in found
