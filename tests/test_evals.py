"""The evaluations: graders pass a right app and find the traps of a naive one."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from recipes._cookbook.skill import SKILL
from tests.evals import graders, harness
from tests.evals.__main__ import table
from tests.evals.harness import Grader, Outcome, Report, bench, check, grade

SOLUTIONS = Path(__file__).parent / "evals" / "solutions"
AT_ONCE = 4
RACES = 3  # a naive app may win one by luck
EVALS: dict[str, Any] = json.loads((SKILL / "evals/evals.json").read_text("utf-8"))
TRIGGERS: list[dict[str, Any]] = json.loads(
    (SKILL / "evals/triggers.json").read_text("utf-8")
)


class Gradings:
    """Grades in a thread, some apps at once, while tests wait for their own."""

    def __init__(self, wanted: list[tuple[str, str]]) -> None:
        self._results: dict[tuple[str, str], Future[Report]]
        self._results = {key: Future() for key in wanted}
        needs = {v for name, _ in wanted for v in graders.load(name).needs}
        self._thread = threading.Thread(target=self._run, args=(needs,))
        self._thread.start()

    def __getitem__(self, key: tuple[str, str]) -> Report:
        return self._results[key].result()

    def join(self) -> None:
        self._thread.join()

    def _run(self, needs: set[str]) -> None:
        try:
            with bench(needs) as servers:
                asyncio.run(self._grade_all(servers))
        except BaseException as error:
            for future in self._results.values():
                if not future.done():
                    future.set_exception(error)
            raise

    async def _grade_all(self, servers: harness.Bench) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(key: tuple[str, str]) -> None:
            name, kind = key
            file = SOLUTIONS / kind / name / "app.py"
            async with slots:
                grader = graders.load(name)
                naive = kind == "naive"
                report = await grade(name, grader, file, servers, traps_only=naive)
                for _ in range(RACES - 1):
                    if naive and lucky(report):
                        again = await grade(
                            name, grader, file, servers, traps_only=True
                        )
                        report.outcomes[:] = map(worse, report.outcomes, again.outcomes)
            self._results[key].set_result(report)

        await asyncio.gather(*(one(key) for key in self._results))


def lucky(report: Report) -> list[str]:
    """The traps that a naive app has passed."""
    return [o.check for o in report.outcomes if o.trap and o.trouble is None]


def worse(first: Outcome, second: Outcome) -> Outcome:
    return first if first.trouble or not first.trap else second


@pytest.fixture(scope="module")
def gradings(request: pytest.FixtureRequest) -> Iterator[Gradings]:
    """Those of the tests that were selected."""
    wanted = [
        (str(item.callspec.params["name"]), str(item.callspec.params["kind"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_a_grader"
    ]
    found = Gradings(wanted)
    yield found
    found.join()


@pytest.mark.graders
@pytest.mark.timeout(600)  # the first test waits for the servers, each for a slot
@pytest.mark.parametrize("kind", ["right", "naive"])
@pytest.mark.parametrize("name", graders.names())
def test_a_grader(gradings: Gradings, name: str, kind: str) -> None:
    report = gradings[name, kind]
    text = table([report])
    if kind == "right":
        assert not report.failed, text
        return
    missed = lucky(report)
    assert not missed, f"{missed} passed:\n{text}"
    assert any(o.trap for o in report.outcomes), "the grader has no trap"
    assert report.outcomes[0].trouble is None, f"it must work at first sight:\n{text}"


def sentences(name: str) -> list[str]:
    marked = (getattr(f, "check", None) for f in vars(graders.load(name)).values())
    return [found[0] for found in marked if found]


@pytest.mark.parametrize("name", graders.names())
def test_a_grader_has_five_to_ten_checks(name: str) -> None:
    found = sentences(name)
    assert 5 <= len(found) <= 10
    assert len(set(found)) == len(found)


def test_every_task_has_a_grader_and_both_solutions() -> None:
    names = [task["name"] for task in EVALS["evals"]]
    assert sorted(names) == graders.names()
    assert len(names) >= 12
    for kind in ("right", "naive"):
        assert sorted(p.parent.name for p in (SOLUTIONS / kind).glob("*/app.py")) == (
            graders.names()
        )


def test_the_file_follows_the_convention_of_agent_skills() -> None:
    assert EVALS["skill_name"] == SKILL.name
    for number, task in enumerate(EVALS["evals"], 1):
        assert set(task) == {"id", "name", "prompt", "expected_output", "files"}
        assert task["id"] == number
        assert "`app.py`" in task["prompt"]
        assert "`app = FastAPI(...)`" in task["prompt"]
        assert task["files"] == []
        assert len(task["expected_output"].split()) < 30


HINTS = (
    # what a prompt must not give away: patterns, traps and graders
    "asyncio", "await", "backpressure", "cancel", "commit", "contextmanager",
    "deadlock", "event loop", "executor", "gather", "grader", "lifespan", "lock",
    "max_body_size", "outbox", "queue", "race condition", "recipe", "scope=",
    "semaphore", "shield", "single-flight", "snapshot", "stampede", "taskgroup",
    "thread", "to_thread", "transaction", "traversal",
)  # fmt: skip


def test_no_prompt_gives_the_answer_away() -> None:
    for task in EVALS["evals"]:
        text = f"{task['prompt']} {task['expected_output']}".lower()
        text = text.replace("sqlalchemy[asyncio]", "")
        found = [hint for hint in HINTS if re.search(rf"\b{re.escape(hint)}", text)]
        assert not found, f"{task['name']} says {found}"
        for sentence in sentences(task["name"]):
            assert sentence.lower() not in text


def test_the_skill_folder_holds_no_grader() -> None:
    found = {path.name for path in (SKILL / "evals").iterdir()}
    assert found == {"evals.json", "triggers.json"}


def test_trigger_queries_are_many_on_both_sides() -> None:
    assert all(set(query) == {"query", "should_trigger"} for query in TRIGGERS)
    for side in (True, False):
        assert sum(query["should_trigger"] is side for query in TRIGGERS) >= 10
    assert len({query["query"] for query in TRIGGERS}) == len(TRIGGERS)


class Probe(Grader):
    """Two checks for apps that cannot pass them."""

    @check("It answers")
    async def answers(self) -> None:
        async with self.app.client() as client:
            assert (await client.get("/")).status_code == 200

    @check("It answers again")
    async def again(self) -> None:
        await self.answers()


HANDLER = """
import os, time
from fastapi import FastAPI
app = FastAPI()
@app.get("/")
async def handler() -> None:
"""
BROKEN = {
    "missing": (None, "there is no app.py"),
    "syntax": ("app = FastAPI(", "does not start: SyntaxError"),
    "ends": ("import sys\nsys.exit(3)", "does not start"),
    "spins": ("while True:\n    pass", "does not start within"),
    "hangs": (f"{HANDLER}    time.sleep(1000)", "not done after"),
    "crashes": (f"{HANDLER}    os._exit(1)", "Error"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_app_fails_its_checks_in_bounded_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = BROKEN[kind]
    file = tmp_path / "app.py"
    if source is not None:
        file.write_text(source)
    monkeypatch.setattr(harness, "CHECK_SECONDS", 1.0)
    monkeypatch.setattr(harness, "ALIVE_SECONDS", 0.5)
    if kind == "spins":
        monkeypatch.setattr(harness, "START_SECONDS", 1.0)
    report = asyncio.run(grade("probe", Probe, file, harness.Bench({})))
    for outcome in report.outcomes:
        assert expected in (outcome.trouble or ""), outcome
        assert "\n" not in (outcome.trouble or "")


def test_a_task_that_takes_too_long_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "app.py"
    file.write_text(str(BROKEN["hangs"][0]))
    monkeypatch.setattr(harness, "TASK_SECONDS", 2.5)
    report = asyncio.run(grade("probe", Probe, file, harness.Bench({})))
    assert [o.trouble for o in report.outcomes] == ["no time left after 2 s"] * 2
