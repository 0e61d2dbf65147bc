"""The ledger: every defect of the original is ruled out by a test of a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from recipes._cookbook import pages, proofs
from recipes._cookbook.catalogue import ROOT, Problem
from tests.test_cli import recipes_command

MARKED = """
import pytest

@pytest.mark.defect("D48", "D49")
async def test_a_dead_member_harms_nobody(): ...

@pytest.mark.defect("D999")
def test_no_such_defect(): ...

def helper(): ...
"""


def test_nothing_is_unproven() -> None:
    assert [str(problem) for problem in proofs.unproven()] == []


def test_it_has_every_pattern_and_every_defect_of_the_original() -> None:
    sections = 4, 7, 4, 6, 3, 3, 3, 3, 5, 4
    items = [f"S{s:02}.{n}" for s, c in enumerate(sections, 1) for n in range(1, c + 1)]
    assert [pattern.item for pattern in proofs.original()] == items
    numbers = [f"D{number}" for number in range(1, 113)]
    assert [entry.defect.number for entry in proofs.ledger()] == numbers


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of behavior tests with one module, `websocket/test_rooms.py`."""
    path = tmp_path / "websocket" / "test_rooms.py"
    path.parent.mkdir()
    path.write_text(MARKED)
    monkeypatch.setattr(proofs, "ROOT", tmp_path)
    monkeypatch.setattr(proofs, "BEHAVIOR", tmp_path)
    return path


def messages() -> list[str]:
    return [problem.message for problem in proofs.unproven()]


@pytest.mark.usefixtures("marked")
def test_a_defect_without_a_test_is_named() -> None:
    assert "D47: mark a test with it, or say why there is none" in messages()
    assert not any(message.startswith("D48") for message in messages())


def test_a_number_that_is_no_defect_is_named(marked: Path) -> None:
    problem = next(p for p in proofs.unproven() if "D999" in p.message)
    assert problem.args == (marked, 7, "D999 is no defect of the original")


def test_a_defect_of_another_recipe_is_named(marked: Path) -> None:
    marked.rename(marked.with_name("test_authentication.py"))
    assert "D48 belongs to websocket/rooms" in messages()


def test_a_pattern_without_its_recipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = proofs.original()
    changed = (replace(first, recipes=("routes/gone",)), *rest)
    monkeypatch.setattr(proofs, "original", lambda: changed)
    assert "S01.1 names 'routes/gone', which is no recipe" in messages()


def test_a_module_that_cannot_be_read_is_a_problem(marked: Path) -> None:
    marked.write_text("def test_(:")
    with pytest.raises(Problem, match=r"test_rooms\.py:1: "):
        proofs.all_proofs()


def test_the_command_prints_a_line_for_each_test() -> None:
    done = recipes_command("ledger")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {number for number, *_ in rows} == {f"D{n}" for n in range(1, 113)}
    for _, recipe, test, verdict in rows:
        assert (ROOT / f"recipes/{recipe}.py").exists()
        if verdict == "tested":
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text("utf-8")
        else:
            assert verdict.startswith("untested: ")


@pytest.mark.usefixtures("marked")
def test_the_command_fails_when_a_test_is_missing() -> None:
    done = recipes_command("ledger")
    assert done.returncode == 1
    assert "D47\twebsocket/rooms\t\tMISSING\n" in done.stdout
    assert "D47: mark a test with it" in done.stderr


def test_run_says_what_the_tests_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {
        "holds": "pass",
        "fails": "raise AssertionError",
        "is_skipped": "pytest.skip()",
    }
    tests = [f"def test_{name}():\n    {body}" for name, body in outcomes.items()]
    path = tmp_path / "test_outcomes.py"
    path.write_text("\n".join(["import pytest", *tests]))
    monkeypatch.setattr(proofs, "ROOT", tmp_path)
    first = proofs.ledger()[0]
    entries = [replace(first, proofs=proofs.proofs(path))]
    monkeypatch.setattr(proofs, "ledger", lambda: entries)
    done = recipes_command("ledger", "--run")
    assert done.returncode == 1
    verdicts = [line.split("\t")[2:] for line in done.stdout.splitlines()]
    assert verdicts == [
        ["test_outcomes.py::test_holds", "passed"],
        ["test_outcomes.py::test_fails", "FAILED"],
        ["test_outcomes.py::test_is_skipped", "FAILED"],
    ]


def test_its_page_has_every_pattern_with_its_defects() -> None:
    path = pages.DOCS / pages.ORIGINAL
    text = pages.original(path.read_text("utf-8"))
    for entry in proofs.ledger():
        assert f"\n- {entry.defect.number}. {entry.defect.symptom} Test: [" in text
        assert f"\n### {entry.pattern.title}\n" in text
    assert pages.PATTERNS not in text
