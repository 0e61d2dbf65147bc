"""The skill: to the specification, small, in step with the recipes, complete."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from skills_ref import validate

from recipes._cookbook import skill
from recipes._cookbook.catalogue import (
    ROOT,
    TOPICS,
    Problem,
    find,
    recipe_paths,
    recipes,
)
from tests.conftest import environment
from tests.harness.server import run_script

MAX_TOKENS = 2500
MANUAL = skill.SKILL / "SKILL.md"


def test_it_meets_the_agent_skills_specification() -> None:
    assert validate(skill.SKILL) == []


def test_it_is_small() -> None:
    assert len(MANUAL.read_text("utf-8")) / 4 <= MAX_TOKENS


def test_it_is_in_step_with_the_recipes() -> None:
    assert [str(problem) for problem in skill.stale()] == []


def test_the_index_names_every_recipe_once() -> None:
    named = re.findall(r"`(\w+/\w+)`$", skill.index(), re.MULTILINE)
    assert sorted(named) == sorted(recipe.name for recipe in recipes())


def test_paths_in_the_text_exist() -> None:
    for path in re.findall(r"`((?:recipes|audit)/[\w/]+\.\w+)`", MANUAL.read_text()):
        assert (skill.SKILL / path).exists(), path


def test_recipes_in_the_text_exist() -> None:
    topics = "|".join(TOPICS)
    named = re.findall(rf"\b(?:{topics})/\w+", MANUAL.read_text())
    assert set(named) == {recipe.name for recipe in recipes()}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the skill folder that the functions work on."""
    copy = tmp_path / "fastapi-async-patterns"
    shutil.copytree(skill.SKILL, copy)
    monkeypatch.setattr(skill, "SKILL", copy)
    return copy


def test_what_is_stale_is_named_and_mended(tree: Path) -> None:
    skill.sync()
    (tree / "recipes/sse/feed.py").write_text("changed")
    (tree / "recipes/sse/gone.py").write_text("stranger")
    (tree / "LICENSE").unlink()
    manual = tree / "SKILL.md"
    manual.write_text(manual.read_text().replace("Stream a live feed", "Stream"))
    stale = {problem.path.name for problem in skill.stale()}
    assert stale == {"feed.py", "gone.py", "LICENSE", "SKILL.md"}
    assert {path.name for path in skill.sync()} == stale
    assert skill.stale() == []
    assert skill.sync() == []
    assert not (tree / "recipes/sse/gone.py").exists()


def test_a_manual_without_its_index_lines_is_named(tree: Path) -> None:
    (tree / "SKILL.md").write_text("no index")
    with pytest.raises(Problem, match=r"needs the lines"):
        skill.sync()


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_a_recipe_runs_from_a_copied_folder(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As `cp -r` copies it, as a script, from another working directory."""
    shutil.copytree(skill.SKILL, tmp_path / "copy")
    script = tmp_path / "copy" / path.relative_to(ROOT)
    variables = environment(request, path.parent.name, path.stem)
    status, output, errors = run_script(script, tmp_path, variables)
    assert status == 0, errors
    assert output.splitlines() == evidence(path)


def evidence(path: Path) -> list[str]:
    """The `# > …` lines of a recipe, in order of the prints that they follow."""
    source = path.read_text("utf-8")
    return [m[1] for m in re.finditer(r"^ *# > (.*)$", source, re.MULTILINE)]


def as_router(name: str) -> APIRouter:
    """The pattern of a recipe, adapted as step 4 of SKILL.md says."""
    pattern = find(name).pattern
    assert "app = FastAPI(lifespan=lifespan" in pattern
    pattern = pattern.replace("app = FastAPI(", "router = APIRouter(")
    names: dict[str, object] = {"__name__": name, "APIRouter": APIRouter}
    exec(compile(pattern.replace("@app.", "@router."), name, "exec"), names)  # noqa: S102 - ours
    router = names["router"]
    assert isinstance(router, APIRouter)
    return router


def test_two_recipes_go_into_one_app_as_the_text_says() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"own": "state"}

    app = FastAPI(lifespan=lifespan)
    app.include_router(as_router("sse/feed"), prefix="/live")
    app.include_router(as_router("caching/single_flight"))

    @app.get("/own")
    async def own(request: Request) -> str:
        return str(request.state.own)

    with TestClient(app) as client:
        assert client.get("/own").json() == "state"
        assert client.post("/live/events", json={"message": "x"}).status_code == 201
        assert client.get("/orders/berlin").json() == 3
