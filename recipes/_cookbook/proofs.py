"""What the behavior tests prove: by recipe, and by defect of the original skill.

Tests are read as text and never imported, as recipes are.
"""

import ast
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from recipes._cookbook.catalogue import ROOT, Problem, recipes

ORIGINAL = Path(__file__).with_name("original.toml")
_STDERR = 2  # the table is what belongs on stdout
BEHAVIOR = ROOT / "tests" / "behavior"


@dataclass(frozen=True)
class Proof:
    """One behavior test."""

    path: Path
    name: str
    """Such as `test_a_dead_member_harms_nobody`."""
    line: int
    """Of its first decorator, or of its `def`."""
    end: int
    defects: tuple[str, ...]
    """Numbers that it rules out, such as `D48`."""

    @property
    def recipe(self) -> str:
        """Such as `sse/feed`."""
        return f"{self.path.parent.name}/{self.path.stem.removeprefix('test_')}"

    @property
    def title(self) -> str:
        """The name as a sentence."""
        return self.name.removeprefix("test_").replace("_", " ").capitalize()

    @property
    def id(self) -> str:
        """What pytest takes on its command line."""
        return f"{self.path.relative_to(ROOT).as_posix()}::{self.name}"


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong in the original."""

    number: str
    """Such as `D48`."""
    symptom: str
    """Markdown, in one sentence or two."""
    untested: str
    """Why no test can show it; empty where one does."""


@dataclass(frozen=True)
class Pattern:
    """One pattern of the original, and what replaces it."""

    item: str
    """Such as `S04.5`."""
    section: str
    title: str
    recipes: tuple[str, ...]
    """Names, such as `websocket/rooms`."""
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    defect: Defect
    pattern: Pattern
    proofs: tuple[Proof, ...]


def proofs(path: Path) -> tuple[Proof, ...]:
    """The tests of a module, in its order.

    Raises:
        Problem: The module cannot be parsed.
    """
    if not path.exists():
        return ()
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except SyntaxError as error:
        raise Problem(path, error.lineno or 1, error.msg) from None
    found = []
    for node in tree.body:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef
        ) and node.name.startswith("test_"):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            end = node.end_lineno or start
            defects = tuple(_defects(node))
            found.append(Proof(path, node.name, start, end, defects))
    return tuple(found)


def _defects(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """What `@pytest.mark.defect("D48")` names."""
    for mark in test.decorator_list:
        if (
            isinstance(mark, ast.Call)
            and ast.unparse(mark.func) == "pytest.mark.defect"
        ):
            for argument in mark.args:
                yield str(ast.literal_eval(argument))


@cache
def original() -> tuple[Pattern, ...]:
    """The 42 patterns of the original, in its order."""
    return tuple(
        Pattern(
            item,
            entry["section"],
            entry["title"],
            tuple(entry["recipes"]),
            tuple(
                Defect(key, text, entry.get("untested", {}).get(key, ""))
                for key, text in entry.items()
                if key.startswith("D")
            ),
        )
        for item, entry in tomllib.loads(ORIGINAL.read_text("utf-8")).items()
    )


def ledger() -> list[Entry]:
    """Every defect of the original with the tests that rule it out."""
    tests = all_proofs()
    return [
        Entry(defect, pattern, tuple(p for p in tests if defect.number in p.defects))
        for pattern in original()
        for defect in pattern.defects
    ]


def all_proofs() -> list[Proof]:
    """The tests of all recipes."""
    paths = sorted(BEHAVIOR.glob("*/test_*.py"))
    return [proof for path in paths for proof in proofs(path)]


def unproven() -> Iterator[Problem]:
    """What the ledger lacks, and what it cannot place."""
    known = {recipe.name for recipe in recipes()}
    for pattern in original():
        for name in set(pattern.recipes) - known:
            message = f"{pattern.item} names {name!r}, which is no recipe"
            yield Problem(ORIGINAL, _line(f'["{pattern.item}"]'), message)
    for entry in ledger():
        number, recipes_of_it = entry.defect.number, entry.pattern.recipes
        if not (entry.proofs or entry.defect.untested):
            message = f"{number}: mark a test with it, or say why there is none"
            yield Problem(ORIGINAL, _line(f"{number} ="), message)
        for proof in entry.proofs:
            if proof.recipe not in recipes_of_it:
                message = f"{number} belongs to {' or '.join(recipes_of_it)}"
                yield Problem(proof.path, proof.line, message)
    numbers = {d.number for pattern in original() for d in pattern.defects}
    for proof in all_proofs():
        for number in set(proof.defects) - numbers:
            message = f"{number} is no defect of the original"
            yield Problem(proof.path, proof.line, message)


def _line(start: str) -> int:
    lines = ORIGINAL.read_text("utf-8").splitlines()
    return next((n for n, line in enumerate(lines, 1) if line.startswith(start)), 1)


def run(entries: list[Entry]) -> dict[str, str]:
    """Run the tests of `entries`: by `Proof.id`, `passed` or `FAILED`.

    A test that was skipped, or did not run at all, has failed.
    """
    wanted = sorted({proof.id for entry in entries for proof in entry.proofs})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *wanted]
        subprocess.run(command, check=False, cwd=ROOT, stdout=_STDERR)  # noqa: S603 - ours
        cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - ours
        passed: set[str] = set()
        failed: set[str] = set()
        for case in cases:
            path = case.attrib["classname"].replace(".", "/") + ".py"
            name = case.attrib["name"].partition("[")[0]
            (failed if len(case) else passed).add(f"{path}::{name}")
    return {i: "passed" if i in passed - failed else "FAILED" for i in wanted}
