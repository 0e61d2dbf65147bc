"""Every fence of every page, and every recipe, is linted and executed."""

from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample

from recipes._cookbook.catalogue import recipe_paths
from tests.conftest import environment
from tests.harness.examples import (
    fences,
    markdown_files,
    recipe_example,
    run_fence,
    run_recipe,
    unseen_fences,
)

FENCES = [example for path in markdown_files() for example in fences(path)]


def test_examples_are_found() -> None:
    assert FENCES
    assert recipe_paths()


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: path.name)
def test_no_python_fence_is_overlooked(path: Path) -> None:
    assert unseen_fences(path) == []


@pytest.mark.parametrize("example", FENCES, ids=str)
def test_fence(example: CodeExample, eval_example: EvalExample) -> None:
    run_fence(eval_example, example)


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_recipe(
    path: Path,
    eval_example: EvalExample,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, url in environment(request, path.parent.name, path.stem).items():
        monkeypatch.setenv(variable, url)
    run_recipe(eval_example, recipe_example(path))
