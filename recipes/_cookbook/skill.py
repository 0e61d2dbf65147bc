"""The skill folder: copies of the recipes, the index in SKILL.md, installation."""

import shutil
import tempfile
from collections.abc import Iterator
from filecmp import cmp
from itertools import groupby
from pathlib import Path

from recipes._cookbook.catalogue import (
    RECIPES,
    ROOT,
    TOPICS,
    Problem,
    problems,
    recipes,
)

SKILL = ROOT / "skills" / "fastapi-async-patterns"
INDEX_START = "<!-- index: `recipes sync` writes what is between these lines -->"
INDEX_END = "<!-- /index -->"

_IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def sync() -> list[Path]:
    """Bring the skill folder up to date; the files that changed.

    Raises:
        Problem: A recipe cannot be read.
    """
    for problem in problems():
        raise problem
    changed = []
    for path, content in _expected().items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            changed.append(path)
    for path in _strangers():
        path.unlink()
        changed.append(path)
    return changed


def stale() -> list[Problem]:
    """What `sync` would change."""
    advice = "run `uv run recipes sync`"
    found = [
        Problem(path, 1, f"is not up to date: {advice}")
        for path, content in _expected().items()
        if not path.exists() or path.read_bytes() != content
    ]
    strangers = [Problem(p, 1, f"is no recipe: {advice}") for p in _strangers()]
    return found + strangers


def index() -> str:
    """The index by topic: the need, and the name of the recipe to read."""
    lines = []
    for topic, found in groupby(recipes(), key=lambda recipe: recipe.topic):
        lines.append(f"\n{TOPICS[topic]}:\n")
        lines += [f"- {recipe.title}: `{recipe.name}`" for recipe in found]
    return "\n".join(lines).strip()


def _expected() -> dict[Path, bytes]:
    """Every generated file of the skill, with its content."""
    copies = {
        SKILL / "recipes" / recipe.path.relative_to(RECIPES): recipe.path.read_bytes()
        for recipe in recipes()
    }
    manual = SKILL / "SKILL.md"
    licence = {SKILL / "LICENSE": (ROOT / "LICENSE").read_bytes()}
    return {**copies, **licence, manual: _with_index(manual).encode()}


def _with_index(manual: Path) -> str:
    text = manual.read_text("utf-8")
    before, start, rest = text.partition(INDEX_START)
    _, end, after = rest.partition(INDEX_END)
    if not (start and end):
        raise Problem(manual, 1, f"needs the lines `{INDEX_START}` and `{INDEX_END}`")
    return f"{before}{start}\n{index()}\n{end}{after}"


def _strangers() -> Iterator[Path]:
    """Copies whose recipe is gone."""
    expected = _expected()
    for path in sorted((SKILL / "recipes").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path not in expected:
            yield path


def installed(folder: Path) -> bool:
    """Whether `folder` is this skill, file by file."""
    ours = {path.relative_to(SKILL) for path in _files(SKILL)}
    theirs = {path.relative_to(folder) for path in _files(folder)}
    same = (cmp(SKILL / path, folder / path, shallow=False) for path in ours)
    return ours == theirs and all(same)


def install(folder: Path) -> None:
    """Copy the skill to `folder`, in place of what is there.

    The copy is complete before it takes its place, so an error leaves the old one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".skill-") as temporary:
        copy, old = Path(temporary, "new"), Path(temporary, "old")
        shutil.copytree(SKILL, copy, ignore=_IGNORED)
        if folder.exists() or folder.is_symlink():
            folder.rename(old)
        copy.rename(folder)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and "__pycache__" not in path.parts:
            yield path
