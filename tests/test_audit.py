"""The audit: it finds the naive forms, and is silent about code that is right."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recipes._cookbook import pages, skill
from recipes._cookbook.catalogue import RECIPES, ROOT

AUDIT = skill.SKILL / "audit"
RULES = sorted(AUDIT.glob("rules/*.yml"))
BEHAVIOR = ROOT / "tests" / "behavior"


def audit(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, AUDIT / "audit.py", *map(str, arguments)],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=50,
    )  # fmt: skip


def findings(*arguments: str | Path) -> list[dict[str, Any]]:
    done = audit("--format=json", *arguments)
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_each_rule_finds_what_it_must_and_nothing_that_it_must_not() -> None:
    command = shutil.which("ast-grep", path=str(Path(sys.executable).parent))
    assert command
    config = f"--config={AUDIT / 'sgconfig.yml'}"
    done = subprocess.run(
        [command, "test", config, "--skip-snapshot-tests"],
        check=False, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} passed; 0 failed" in done.stdout


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_each_rule_has_cases_and_says_what_to_read(path: Path) -> None:
    rule = path.read_text("utf-8")
    assert rule.startswith(f"id: {path.stem}\n")
    cases = (AUDIT / "tests" / f"{path.stem}-test.yml").read_text("utf-8")
    valid, invalid = cases.split("invalid:\n")
    assert valid.count("\n  - ") >= 2
    assert f"\n{invalid}".count("\n  - ") >= 2
    note = next(line for line in rule.splitlines() if line.startswith("note:"))
    named = [word.strip(".,'\"") for word in note.split() if "recipes/" in word]
    assert named
    for name in named:
        assert (skill.SKILL / name).exists(), name


def test_it_is_silent_about_the_recipes() -> None:
    assert [f for f in findings(RECIPES) if f["severity"] != "info"] == []


# Which rules must speak up about which naive form. It may say more.
NAIVE = {
    "caching/single_flight": {"blocking-call", "falsy-cache-hit"},
    "concurrency/bounded": {"unbounded-gather"},
    "concurrency/fan_out": {"client-per-request"},
    "concurrency/first_success": {"client-per-request", "wait-with-coroutines"},
    "databases/asyncpg_pool_per_request": {"client-per-request", "no-query-timeout"},
    "databases/sqlalchemy_parallel": {"shared-session"},
    "databases/sqlalchemy_relations": {"shared-session"},
    "databases/sqlalchemy_session": {"commit-after-yield"},
    "lifespan/http_client": {"client-per-request"},
    "lifespan/resources_events": {"on-event"},
    "sse/feed_heartbeat": {"swallowed-cancellation"},
    "streaming/csv_export": {"offset-export"},
    "streaming/upload": {"client-file-name", "whole-upload"},
    "websocket/rooms": {"sequential-broadcast"},
    "websocket/typed_messages": {"unhandled-bad-message"},
}


@pytest.mark.parametrize("name", NAIVE)
def test_it_finds_what_is_wrong_with_a_naive_form(name: str) -> None:
    topic, stem = name.split("/")
    found = {f["rule"] for f in findings(BEHAVIOR / topic / f"naive_{stem}.py")}
    assert found >= NAIVE[name]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(
        "import asyncio\n\n\n"
        "async def first(a, b):\n"
        "    await asyncio.wait([a(), b()])\n"
        "    tasks.add_task(charge, 1)\n"
    )
    return path


def test_a_finding_says_where_what_happens_and_what_to_read(app: Path) -> None:
    done = audit(app)
    assert done.returncode == 1
    first, explained, read, *_ = done.stdout.splitlines()
    assert first == f"{app}:5: error: wait-with-coroutines"
    assert "`TypeError: Passing coroutines is forbidden" in explained
    assert "recipes/concurrency/first_success.py" in read
    assert done.stderr == "1 errors, 0 warnings, 1 for information\n"


def test_it_fixes_what_is_mechanical_and_information_is_no_failure(app: Path) -> None:
    done = audit("--fix", app)
    assert done.returncode == 0
    assert done.stderr == "0 errors, 0 warnings, 1 for information\n"
    fixed = "wait([asyncio.create_task(a()), asyncio.create_task(b())])"
    assert fixed in app.read_text()


def test_findings_can_annotate_a_pull_request(app: Path) -> None:
    first = audit("--format=github", app).stdout.splitlines()[0]
    start = f"::error file={app},line=5,title=wait-with-coroutines::`asyncio.wait`"
    assert first.startswith(start)


def test_a_comment_silences_one_finding(app: Path) -> None:
    ignored = "    # ast-grep-ignore: wait-with-coroutines\n    await asyncio.wait("
    app.write_text(app.read_text().replace("    await asyncio.wait(", ignored))
    assert audit(app).returncode == 0


def test_it_makes_lifespans_of_event_handlers(tmp_path: Path) -> None:
    path = tmp_path / "events.py"
    path.write_text(
        '''"""An app."""\n\nfrom __future__ import annotations\n
from fastapi import FastAPI\n
app = FastAPI()
seen = []\n\n
@app.on_event("startup")
async def connect():
    seen.append("connect")\n\n
@app.on_event(  # old
    "startup"
)
def warm_up():
    seen.append("warm up")\n\n
@app.get("/seen")
async def read():
    return seen\n\n
@app.on_event("shutdown")
async def disconnect():
    seen.append("disconnect")'''
    )
    assert audit("--fix", path).returncode == 0, path.read_text()
    names: dict[str, Any] = {"__name__": "events"}
    exec(compile(path.read_text(), path, "exec"), names)  # noqa: S102 - ours
    with TestClient(names["app"]) as client:
        assert client.get("/seen").json() == ["connect", "warm up"]
    assert names["seen"] == ["connect", "warm up", "disconnect"]


def test_a_handler_that_no_fix_can_replace_stays(tmp_path: Path) -> None:
    path = tmp_path / "events.py"
    source = (
        "from fastapi import FastAPI\n\n\n"
        "def make():\n    app = FastAPI()\n\n"
        '    @app.on_event("startup")\n    async def connect(): ...\n\n'
        "    return app\n"
    )
    path.write_text(source)
    assert audit("--fix", path).returncode == 1
    assert path.read_text() == source


def test_a_file_that_does_not_parse_stays(tmp_path: Path) -> None:
    path = tmp_path / "events.py"
    source = (
        'from fastapi import FastAPI\n\n@app.on_event("startup")\nasync def f(: ...\n'
    )
    path.write_text(source)
    assert "Traceback" not in audit("--fix", path).stderr
    assert path.read_text() == source


def test_ruff_and_the_rules_say_a_thing_once(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text("import asyncio\n\nasync def f():\n    asyncio.create_task(g())\n")
    assert [f["rule"] for f in findings(path)] == ["dropped-task"]


def test_what_blocks_is_not_said_where_no_request_waits(tmp_path: Path) -> None:
    code = (
        "from contextlib import asynccontextmanager\n\n"
        "@asynccontextmanager\nasync def lifespan(app):\n"
        "    app.state.key = open('key').read()\n    yield\n\n"
        "async def read():\n    return open('key').read()\n"
    )
    project = tmp_path / "scripts" / "shop"  # above the project it says nothing
    for name in "app.py", "test_app.py", "conftest.py", "scripts/fill.py":
        path = project / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(code)
    [found] = findings(project)
    assert (Path(found["file"]).name, found["line"]) == ("app.py", 9)
    assert found["rule"] == "ASYNC230"


def test_a_look_at_a_path_is_information_and_reading_it_is_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.py"
    path.write_text(
        "from pathlib import Path\n\nasync def read():\n"
        "    if Path('key').exists():\n        return Path('key').read_text()\n"
    )
    assert [f["severity"] for f in findings(path)] == ["info", "error"]


def test_a_timeout_may_be_among_the_arguments(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text(
        "import requests\n\nrequests.get('/a', **limits)\nrequests.get('/b')\n"
    )
    assert [(f["rule"], f["line"]) for f in findings(path)] == [("S113", 4)]


def test_noqa_of_ruff_silences_the_rule_that_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text("import asyncio\n\nasyncio.create_task(f())  # noqa: RUF006\n")
    assert findings(path) == []


def test_libraries_that_lie_in_the_tree_are_left_out(app: Path) -> None:
    library = app.parent / "venv" / "lib" / "other.py"
    library.parent.mkdir(parents=True)
    library.write_text(app.read_text())
    assert {f["file"] for f in findings(app.parent)} == {str(app)}


def test_a_path_that_is_not_there_is_one_clear_line() -> None:
    done = audit("no/such/path")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: no/such/path does not exist")


def test_a_file_that_is_no_python_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "notes.txt").write_text("asyncio.create_task(f())")
    assert findings(tmp_path) == []


def packages() -> dict[str, str]:
    """The table of the guide: what the audit finds in each package."""
    guide = (ROOT / "docs/guides/audit.md").read_text("utf-8")
    _, _, table = guide.partition("## What it says about well-kept packages")
    return dict(re.findall(r"^\| (\w+) \| (.+) \|$", table, re.MULTILINE)[1:])


@pytest.mark.parametrize("name", packages())
def test_what_it_says_about_well_kept_packages(name: str, tmp_path: Path) -> None:
    spec = find_spec(name)
    assert spec
    assert spec.origin
    # A copy: what lies in a virtual environment is left out.
    shutil.copytree(Path(spec.origin).parent, tmp_path / name)
    found = findings(tmp_path / name)
    counts = Counter(f["rule"] for f in found if f["severity"] != "info")
    said = ", ".join(f"`{rule}` {counts[rule]}" for rule in sorted(counts))
    assert (said or "none") == packages()[name]


def test_the_guide_names_every_rule() -> None:
    text = pages.audit((ROOT / "docs/guides/audit.md").read_text("utf-8"))
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [
        path.stem for path in RULES
    ]


def test_the_hook_of_the_guide_runs(tmp_path: Path) -> None:
    guide = (ROOT / "docs/guides/audit.md").read_text("utf-8")
    [hook] = re.findall(r"```yaml\n(repos:.+?)```", guide, re.DOTALL)
    command = f"{sys.executable} {AUDIT / 'audit.py'}"
    hook = re.sub(r"(?<=entry: ).+", command, hook)
    (tmp_path / ".pre-commit-config.yaml").write_text(hook)
    (tmp_path / "app.py").write_text("import asyncio\nasyncio.create_task(f())\n")
    for arguments in ["git", "init", "-q"], ["git", "add", "."]:
        subprocess.run(arguments, check=True, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "app.py:2: warning: dropped-task" in done.stdout
