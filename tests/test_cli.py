"""The command line, as a person types it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from recipes._cookbook import cli, skill
from recipes._cookbook.catalogue import ROOT, recipe_paths


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def recipes_command(
    *arguments: str | Path, home: Path | None = None, stdin: str | None = None
) -> Done:
    """Run a command in this process, which saves a start of Python each."""
    out, err = StringIO(), StringIO()
    environment = {"HOME": str(home)} if home else {}
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with (
        patch.dict(os.environ, environment),
        patch("sys.argv", ["recipes", *map(str, arguments)]),
        patch("sys.stdin", StringIO(stdin or "")),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        status: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(status, int)
    return Done(status, out.getvalue(), err.getvalue())


def recipes_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "recipes", *arguments],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=50,
    )  # fmt: skip


def test_help_names_every_command() -> None:
    done = recipes_command("--help")
    assert done.returncode == 0
    assert {"list", "show", "run", "serve", "sync", "check", "docs", "install"} <= (
        set(done.stdout.split())
    )


def test_without_a_command_it_shows_the_help() -> None:
    assert "Usage" in recipes_command().stdout


def test_list_has_every_recipe() -> None:
    done = recipes_command("list")
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    names = [f"{path.parent.name}/{path.stem}" for path in recipe_paths()]
    assert [name for name, _ in rows] == names


def test_list_in_a_narrow_terminal_has_whole_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    listed = recipes_command("list").stdout
    for path in recipe_paths():
        assert f" {path.parent.name}/{path.stem} " in listed


def test_list_as_json() -> None:
    rows = json.loads(recipes_command("list", "--json").stdout)
    [feed] = [row for row in rows if row["name"] == "sse/feed"]
    assert feed["topic"] == "sse"
    assert feed["title"] == "Stream a live feed that resumes after a dropped connection"
    assert len(rows) == len(recipe_paths())


def test_show_prints_the_source_as_it_is() -> None:
    shown = recipes_command("show", "sse/feed").stdout
    assert shown == (ROOT / "recipes/sse/feed.py").read_text("utf-8")


@pytest.mark.parametrize("command", ["show", "run"])
def test_an_unknown_name_is_one_line_with_the_nearest(command: str) -> None:
    done = recipes_command(command, "sse/fed")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "No recipe is called 'sse/fed'. Did you mean sse/feed?\n"


def test_run_prints_the_evidence() -> None:
    done = recipes_process("run", "feed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'data: "two"\nevent: reset\n'


def test_run_starts_the_servers_that_a_recipe_needs() -> None:
    done = recipes_process("run", "databases/sqlalchemy_session")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_check_passes() -> None:
    done = recipes_command("check")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(recipe_paths())} recipes, no problem\n"


def test_docs_writes_a_page_for_each_recipe(tmp_path: Path) -> None:
    done = recipes_command("docs", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for path in recipe_paths():
        page = tmp_path / "out/recipes" / path.parent.name / f"{path.stem}.md"
        assert page.is_file()


def test_docs_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = recipes_command("docs", tmp_path / "file")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("directory", [ROOT / "docs", ROOT / "docs/new"])
def test_docs_refuses_its_own_sources(directory: Path) -> None:
    done = recipes_command("docs", directory)
    assert done.returncode == 1
    assert done.stderr.endswith("name another folder.\n")
    assert not (ROOT / "docs/new").exists()


def test_docs_where_it_may_not_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "assets").write_text("")
    done = recipes_command("docs", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"[Errno 17] File exists: '{tmp_path / 'assets'}'\n"


def test_install_goes_to_the_home_folder(tmp_path: Path) -> None:
    done = recipes_command("install", home=tmp_path)
    target = tmp_path / ".claude/skills/fastapi-async-patterns"
    assert done.stdout == f"installed {target}\n"
    assert skill.installed(target)
    assert not list(target.rglob("__pycache__"))
    assert list(target.parent.iterdir()) == [target]
    again = recipes_command("install", home=tmp_path)
    assert again.stdout == f"{target} is up to date\n"


def test_install_asks_before_it_replaces_other_content(tmp_path: Path) -> None:
    target = tmp_path / "fastapi-async-patterns"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    refused = recipes_command("install", tmp_path, stdin="")
    assert refused.returncode == 1
    assert (
        refused.stderr == f"{target} holds other content: use --force to replace it.\n"
    )
    assert (target / "mine.txt").exists()
    forced = recipes_command("install", tmp_path, "--force")
    assert forced.returncode == 0, forced.stderr
    assert skill.installed(target)


def test_install_asks_before_it_replaces_a_link_to_nowhere(tmp_path: Path) -> None:
    target = tmp_path / "fastapi-async-patterns"
    target.symlink_to(tmp_path / "nowhere")
    refused = recipes_command("install", tmp_path, stdin="")
    assert refused.returncode == 1
    assert "use --force to replace it." in refused.stderr
    assert target.is_symlink()


def test_install_where_it_may_not_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = recipes_command("install", tmp_path / "file")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
