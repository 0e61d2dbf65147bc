"""One module for each task: a class `Task` whose checks probe an app from outside."""

from importlib import import_module
from pathlib import Path

from tests.evals.harness import Grader


def names() -> list[str]:
    """Every task that has a grader."""
    folder = Path(__file__).parent
    return sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def load(name: str) -> type[Grader]:
    """The grader of the task called `name`."""
    grader: type[Grader] = import_module(f"{__name__}.{name}").Task
    return grader
