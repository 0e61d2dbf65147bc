"""pytest-examples over Markdown fences and whole recipe modules, its traps handled."""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import FrameInfo
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pytest_examples import CodeExample, EvalExample, find_examples
from pytest_examples.config import ExamplesConfig

from recipes._cookbook.catalogue import ROOT

LINE_LENGTH = 88
PYTHON_FENCE = ("py", "python")

# `ruff format` writes evidence as `# > …`, pytest-examples reads `#> …`.
_KEPT = re.compile(r"^( *)# > ", re.MULTILINE)
_READ = re.compile(r"^( *)#> ", re.MULTILINE)

# Also in a quotation or on the line of a list item; `{ .python }` is a language too.
_FENCE = re.compile(r"\s*(?:(?:>|[-*+]|\d+[.)])\s*)*(`{3,}|~{3,})\s*([{.\s]*[^\s`]*)")


@dataclass
class _Config(ExamplesConfig):
    """Ruff with the project's rules and output that names file and line."""

    stdin_name: str = ""

    def ruff_config(self) -> tuple[str, ...]:
        # A fence has its lines mapped from `-:1`; a whole file keeps its own name.
        name = (f"--stdin-filename={self.stdin_name}",) if self.stdin_name else ()
        given = ("--config", 'builtins=["app", "client"]')  # see `run_fence`
        ignored = ("--ignore=D,INP,T20,ANN", *given) if not self.stdin_name else ()
        return (f"--config={ROOT / 'pyproject.toml'}", "--output-format=concise",
                *name, *ignored)  # fmt: skip


def markdown_files(root: Path = ROOT) -> list[Path]:
    """Every hand-written page: README, CONTRIBUTING, docs, the skill."""
    skill = root / "skills" / "fastapi-async-patterns"
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *skill.glob("**/*.md")]
    return sorted(found)


def fences(path: Path) -> list[CodeExample]:
    """The Python fences of a page that pytest-examples sees."""
    return list(find_examples(path))


def unseen_fences(path: Path) -> list[str]:
    """Fences that pytest-examples overlooks or misreads, as `file:line: message`."""
    seen = {example.start_line for example in fences(path)}
    problems = []
    for line, marker, language in _all_fences(path):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        is_python = language.lower().lstrip("{. ").startswith(("py", "ipython"))
        if not is_python:
            continue
        if language not in PYTHON_FENCE or marker != "```":
            problems.append(f"{shown}:{line}: write the fence as ```python")
        elif line not in seen:
            problems.append(f"{shown}:{line}: no example was found in this fence")
    return problems


def _all_fences(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, marker and language of each opening fence."""
    closing = ""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if match is None:
            continue
        if not closing:
            closing = match[1]
            yield number, match[1], match[2]
        elif match[1].startswith(closing) and not match[2]:
            closing = ""


def run_fence(eval_example: EvalExample, example: CodeExample) -> None:
    """Lint and run a fence, then start the app that it adds routes to.

    A fence that defines no `app` of its own is given one, and a `client` for it.
    """
    eval_example.config = _Config(line_length=LINE_LENGTH)
    app = FastAPI()
    with TestClient(app) as client:
        names = {"app": app, "client": client}
        found = _run(eval_example, example, module_globals=names, call="main")
    with TestClient(found.get("app", app)) as client:
        assert client.get("/openapi.json").is_success


def recipe_example(path: Path) -> CodeExample:
    """A whole module as one example."""
    text = path.read_text("utf-8")
    example: CodeExample = CodeExample.create(text, path=path)
    example.group = uuid4()
    return example


def run_recipe(eval_example: EvalExample, example: CodeExample) -> None:
    """Lint and run a recipe; its printed lines must equal the `# >` lines."""
    name = str(example.path)
    eval_example.config = _Config(line_length=LINE_LENGTH, stdin_name=name)
    _run(eval_example, example)


def _run(
    eval_example: EvalExample, example: CodeExample, **options: Any
) -> dict[str, Any]:
    update = eval_example.update_examples
    run = eval_example.run_print_update if update else eval_example.run_print_check
    found: dict[str, Any] = {}
    failure = ""
    printed: set[int] = set()  # lines
    example.source = _KEPT.sub(r"\1#> ", example.source)

    def note(file: Path, frame: FrameInfo, _: Sequence[Any]) -> bool:
        ours = file.samefile(frame.filename)
        if ours:
            printed.add(frame.lineno)
        return ours

    eval_example.include_print = note
    with _main_restored():
        eval_example.lint_ruff(example)
        try:
            found = run(example, **options)
        except Exception as error:  # noqa: BLE001 - whatever a snippet raises
            failure = f"{_place(error, example)}: {type(error).__name__}: {error}"
        except pytest.fail.Exception as error:
            failure = f"{example.path}:{_changed_line(str(error))}: {error}"
    if not (failure or update):  # an update moves the lines
        failure = _unprinted(example, printed)
    if failure:  # only here: Python 3.11 cannot render pytest-examples' traceback
        pytest.fail(failure, pytrace=False)
    # What pytest-examples may write back must be in the form that we keep.
    example.source = _READ.sub(r"\1# > ", example.source)
    return found


def _place(error: Exception, example: CodeExample) -> str:
    traceback, line = error.__traceback__, example.start_line
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(example.path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{example.path}:{line}"


def _changed_line(message: str) -> int:
    """The first line that differs, by the diff that pytest-examples prints."""
    lines = iter(message.splitlines())
    hunks = (match[1] for line in lines if (match := re.match(r" *@@ -(\d+)", line)))
    start = next(hunks, "1")
    same = takewhile(lambda line: line[2:3] not in ("+", "-"), lines)
    return int(start) + len(list(same))


def _unprinted(example: CodeExample, printed: set[int]) -> str:
    """The first `#>` line below no `print` that ran: pytest-examples keeps it."""
    ends = {
        node.end_lineno
        for node in ast.walk(ast.parse(example.source))
        if isinstance(node, ast.Call) and node.lineno in printed
    }
    above = 0
    for number, line in enumerate(example.source.splitlines(), 1):
        if not _READ.match(line):
            above = number
        elif above not in ends:
            place = f"{example.path}:{example.start_line + number}"
            return f"{place}: no `print` above this line ran"
    return ""


@contextmanager
def _main_restored() -> Iterator[None]:
    """pytest-examples leaves its module behind as `__main__`."""
    main = sys.modules["__main__"]
    try:
        yield
    finally:
        sys.modules["__main__"] = main
