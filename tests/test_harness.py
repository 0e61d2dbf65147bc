"""The checkers are checked: a checker that has stopped looking passes everything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes._cookbook.catalogue import ROOT
from tests.harness.examples import fences, unseen_fences
from tests.harness.served import Options
from tests.harness.server import Server


@pytest.fixture
def naughty(tmp_path: Path) -> Server:
    return Server(Options("tests.naughty", tmp_path / "log"))


async def get(server: Server, path: str) -> int:
    async with server.client() as client:
        return (await client.get(path)).status_code


async def test_a_good_app_has_no_troubles(naughty: Server) -> None:
    assert await get(naughty, "/fine") == 200
    assert naughty.stop() == []
    assert naughty.wait() == -15


@pytest.mark.parametrize(
    ("path", "error"), [("/blocks", "BlockingError"), ("/warns", "DeprecationWarning")]
)
async def test_what_the_served_process_refuses(
    naughty: Server, path: str, error: str
) -> None:
    assert await get(naughty, path) == 500
    naughty.wait_for_log(error)
    assert naughty.stop() == []


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("/leaks-a-task", "task left"),
        ("/leaks-a-descriptor", "file descriptor left"),
        ("/loses-an-exception", "never retrieved"),
        ("/forgets-to-await", "never awaited"),
    ],
)
async def test_what_is_reported_after_the_stop(
    naughty: Server, path: str, trouble: str
) -> None:
    assert await get(naughty, path) == 200
    assert [line for line in naughty.stop() if trouble in line]


def test_troubles_fail_the_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        """
        import urllib.request

        def test_leak(serve):
            server = serve("tests.naughty")
            urllib.request.urlopen(server.url + "/leaks-a-task")
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*task left*"])


def test_an_app_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such host"):
        Server(Options("tests.naughty:broken", tmp_path / "log"))


def test_an_app_that_need_not_start_tells_its_status(tmp_path: Path) -> None:
    options = Options("tests.naughty:broken", tmp_path / "log")
    broken = Server(options, must_start=False)
    assert broken.wait() != 0
    assert not broken.is_running
    assert "Traceback" in broken.log
    assert broken.stop() == ["it ended without a report"]
    fine = Server(Options("tests.naughty", tmp_path / "fine"), must_start=False)
    fine.wait_for_log("Application startup complete")
    fine.kill()
    assert not fine.is_running


@pytest.mark.parametrize(
    "fence",
    [
        "~~~python\nprint(1)\n~~~",
        "```pycon\n>>> 1\n```",
        "```python3\nprint(1)\n```",
        "````python\nprint(1)\n````",
        "```Python\nprint(1)\n```",
        "> ```python\n> print(1)\n> ```",
        "``` { .python }\nprint(1)\n```",
        "``` {.python title='x.py'}\nprint(1)\n```",
        "- ```python\n  print(1)\n  ```",
        "1. ```python\n   print(1)\n   ```",
    ],
)
def test_fences_that_would_not_run_are_refused(tmp_path: Path, fence: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{fence}\n")
    assert len(unseen_fences(page)) == 1


def test_fences_in_lists_and_tabs_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('=== "tab"\n\n    ```python\n    print(1)\n    ```\n')
    assert unseen_fences(page) == []
    assert len(fences(page)) == 1


BROKEN_FENCES = {
    "undefined": ("undefined", "F821"),
    "raises": ("raise ValueError('boom')", "ValueError: boom"),
    "output": ("print(1)\n#> 2", "Print output changed"),
    "unused": ("import os", "F401"),
    "blocks": ("import time\n\n\nasync def main():\n    time.sleep(1)", "ASYNC251"),
}


def test_a_broken_fence_fails_with_its_line(pytester: pytest.Pytester) -> None:
    page = pytester.path / "page.md"
    page.write_text(
        "".join(f"```python\n{code}\n```\n\n" for code, _ in BROKEN_FENCES.values())
    )
    pytester.makepyfile(
        f"""
        from pathlib import Path
        import pytest
        from tests.harness.examples import fences, run_fence

        @pytest.mark.parametrize("example", fences(Path({str(page)!r})), ids=str)
        def test_fence(example, eval_example):
            run_fence(eval_example, example)
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=len(BROKEN_FENCES))
    expected = [
        (2, "F821"), (6, "boom"), (11, "Print output"), (15, "F401"), (23, "ASYNC251")
    ]  # fmt: skip
    for line, message in expected:
        result.stdout.fnmatch_lines_random([f"*page.md:{line}:*{message}*"])


SUM = '"""Sum."""\n\nprint(1 + 1)  # noqa: T201\n'


@pytest.fixture
def sums(pytester: pytest.Pytester) -> Path:
    """A recipe, and the test that runs it."""
    module = pytester.path / "sums.py"
    pytester.makepyfile(
        test_sums=f"""
        from pathlib import Path
        from tests.harness.examples import recipe_example, run_recipe

        def test_recipe(eval_example):
            run_recipe(eval_example, recipe_example(Path({str(module)!r})))
        """
    )
    return module


@pytest.mark.parametrize("evidence", ["# > 3\n", "", "# > 2\n# > 2\n"])
def test_broken_evidence_fails_and_is_repaired(
    pytester: pytest.Pytester, sums: Path, evidence: str
) -> None:
    sums.write_text(f"{SUM}{evidence}")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    line = 5 if evidence.startswith("# > 2") else 4
    result.stdout.fnmatch_lines([f"{sums}:{line}: Print output changed*"])
    pytester.runpytest_inprocess("--update-examples").assert_outcomes(passed=1)
    assert sums.read_text() == f"{SUM}# > 2\n"
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_evidence_of_several_prints_is_filled_in(
    pytester: pytest.Pytester, sums: Path
) -> None:
    line = "print(1)  # noqa: T201\n"
    sums.write_text(f"{SUM}{line}{line}")
    pytester.runpytest_inprocess("--update-examples").assert_outcomes(passed=1)
    assert sums.read_text() == f"{SUM}# > 2\n{line}# > 1\n{line}# > 1\n"


@pytest.mark.parametrize(
    "orphan", ["x = 1\n# > 1\n", "if not SUM:\n    print(1)  # noqa: T201\n    # > 1\n"]
)
def test_evidence_that_nothing_printed_fails_with_its_line(
    pytester: pytest.Pytester, sums: Path, orphan: str
) -> None:
    sums.write_text(f"{SUM}# > 2\nSUM = 2\n{orphan}")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    line = 5 + len(orphan.splitlines())
    result.stdout.fnmatch_lines([f"{sums}:{line}: no `print` above this line ran"])


def test_a_commit_without_the_copy_of_a_new_recipe_is_refused(tmp_path: Path) -> None:
    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        # A commit that runs these tests from its hook has variables of its own.
        given = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=tmp_path,
            env=given | {"PRE_COMMIT_HOME": str(tmp_path / ".cache")},
        )  # fmt: skip

    config = str(ROOT / ".pre-commit-config.yaml")
    hook = (sys.executable, "-m", "pre_commit", "run", "--config", config,
            "copies-are-added")  # fmt: skip
    run("git", "init", "-q")
    copy = tmp_path / "skills/fastapi-async-patterns/recipes/sse/new.py"
    copy.parent.mkdir(parents=True)
    copy.touch()
    refused = run(*hook)
    assert refused.returncode == 1
    assert "Not added yet: skills/fastapi-async-patterns/recipes/sse" in refused.stdout
    run("git", "add", "skills")
    assert run(*hook).returncode == 0
