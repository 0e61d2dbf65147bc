"""Grade apps: `uv run python -m tests.evals DIR` looks for `DIR/<task>/app.py`."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.evals import graders
from tests.evals.harness import Grader, Report, bench, grade

AT_ONCE = 3


async def grade_all(folder: Path, tasks: dict[str, type[Grader]]) -> list[Report]:
    """Grade every task, some at once."""
    slots = asyncio.Semaphore(AT_ONCE)
    needs = {variable for grader in tasks.values() for variable in grader.needs}
    with bench(needs) as servers:

        async def one(name: str, grader: type[Grader]) -> Report:
            async with slots:
                return await grade(name, grader, folder / name / "app.py", servers)

        return await asyncio.gather(*(one(*task) for task in tasks.items()))


def table(reports: list[Report]) -> str:
    """One line for each task, and one for each check that failed for its own reason."""
    lines = [f"{'task':<20} {'passed':>7} {'lines':>6} {'seconds':>8}"]
    for report in reports:
        total = len(report.outcomes)
        passed = f"{total - len(report.failed)}/{total}"
        figures = f"{passed:>7} {report.lines:>6} {report.seconds:>8.1f}"
        lines.append(f"{report.task:<20} {figures}")
        troubles = {outcome.trouble for outcome in report.outcomes}
        if len(troubles) == 1 and total > 1 and report.failed:
            lines.append(f"    failed: all checks: {troubles.pop()}")
        else:
            lines += [f"    failed: {o.check}: {o.trouble}" for o in report.failed]
    checks = [outcome for report in reports for outcome in report.outcomes]
    passed = f"{sum(o.trouble is None for o in checks)}/{len(checks)}"
    lines.append(f"{'all':<20} {passed:>7}")
    return "\n".join(lines)


def main() -> int:
    """Grade a folder; 0 if every check passes."""
    parser = argparse.ArgumentParser("python -m tests.evals", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds <task>/app.py")
    choices = graders.names()
    parser.add_argument("--task", action="append", choices=choices, metavar="TASK")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    tasks = {name: graders.load(name) for name in options.task or choices}
    reports = asyncio.run(grade_all(options.folder, tasks))
    if options.json:
        text = json.dumps([asdict(report) for report in reports], indent=2)
    else:
        text = table(reports)
    sys.stdout.write(f"{text}\n")
    return int(any(report.failed for report in reports))


if __name__ == "__main__":
    sys.exit(main())
