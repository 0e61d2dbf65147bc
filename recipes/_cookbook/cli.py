"""The command line: `recipes --help`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Column, Table

from recipes._cookbook import catalogue, proofs, rules, servers, skill
from recipes._cookbook.catalogue import Problem, UnknownRecipe

DEFAULT_SKILLS = Path("~/.claude/skills")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="FastAPI async patterns: a cookbook whose every line has run.",
)
console = Console()
Name = Annotated[str, typer.Argument(metavar="NAME", help="Such as `sse/feed`.")]


def main() -> None:
    """Run the command line; an error that a person can mend is one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _unwind)
    try:
        app()
    except (Problem, UnknownRecipe, servers.ServerError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _unwind(number: int, _: object) -> None:
    """End by an exception, so that servers are stopped; that takes two seconds.

    A second signal would cut it short and leave servers behind, so it is ignored.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def fail(message: str) -> None:
    """Print one line to stderr and exit with 1."""
    typer.echo(message, err=True)
    sys.exit(1)


@app.command("list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List all recipes; in a pipe, name, tab and title are one line each."""
    found = catalogue.recipes()
    if as_json:
        keys = ("topic", "name", "title", "use_when", "not_when", "keywords")
        rows = [{key: getattr(recipe, key) for key in keys} for recipe in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not console.is_terminal:
        for recipe in found:
            typer.echo(f"{recipe.name}\t{recipe.title}")
        return
    longest = max((len(recipe.name) for recipe in found), default=0)
    name = Column("name", no_wrap=True, min_width=longest)
    table = Table("topic", name, "title", box=None)
    for recipe in found:
        table.add_row(catalogue.TOPICS[recipe.topic], recipe.name, recipe.title)
    console.print(table)


@app.command()
def show(name: Name) -> None:
    """Print a recipe."""
    source = catalogue.find(name).source
    if console.is_terminal:
        console.print(Syntax(source, "python", background_color="default"))
    else:
        typer.echo(source, nl=False)


@app.command()
def run(name: Name) -> None:
    """Run a recipe's evidence, with throw-away servers where it needs them."""
    recipe = catalogue.find(name)
    with servers.available(recipe.servers) as found:
        for error in found.errors.values():
            fail(error)
        command = [sys.executable, str(recipe.path)]
        done = subprocess.run(command, check=False, env=os.environ | found.urls)  # noqa: S603 - ours
    sys.exit(done.returncode)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one.")
    ] = 8000,
) -> None:
    """Serve the site, with every recipe live in its page.

    Starts throw-away PostgreSQL, Valkey and a MongoDB-compatible server, unless
    DATABASE_URL, REDIS_URL or MONGODB_URL name running ones.
    """
    from recipes._cookbook import serve as serving

    with suppress(KeyboardInterrupt):
        serving.serve(host, port, console)


@app.command()
def sync() -> None:
    """Copy the recipes into the skill and renew its index."""
    for path in skill.sync():
        typer.echo(f"wrote {path.relative_to(catalogue.ROOT)}")


@app.command()
def check() -> None:
    """Check the rules of every recipe, and that the skill is up to date."""
    problems = [*rules.check_all(), *proofs.unproven()] or skill.stale()
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        sys.exit(1)
    typer.echo(f"{len(catalogue.recipes())} recipes, no problem")


@app.command()
def ledger(
    run: Annotated[
        bool, typer.Option("--run", help="Run the tests; takes some minutes.")
    ] = False,
) -> None:
    """List each defect of the original skill with the test that rules it out.

    The verdict is `tested`, `untested` with the reason, or `MISSING`; with `--run` it
    is `passed` or `FAILED`. Exits with 1 if one is missing or failed.
    """
    entries = proofs.ledger()
    outcomes = proofs.run(entries) if run else {}
    rows = [row for entry in entries for row in _ledger_rows(entry, outcomes)]
    if console.is_terminal:
        table = Table("defect", "recipe", "test", "verdict", box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for row in rows:
            typer.echo("\t".join(row))
    problems = list(proofs.unproven())
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems or any(row[-1] == "FAILED" for row in rows):
        sys.exit(1)


def _ledger_rows(
    entry: proofs.Entry, outcomes: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """Defect, recipe, test, verdict: a row for each test."""
    number, untested = entry.defect.number, entry.defect.untested
    for proof in entry.proofs:
        yield number, proof.recipe, proof.id, outcomes.get(proof.id, "tested")
    if not entry.proofs:
        verdict = f"untested: {untested}" if untested else "MISSING"
        yield number, entry.pattern.recipes[0], "", verdict


@app.command()
def docs(directory: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Write the site's pages as Markdown, for other site generators."""
    from recipes._cookbook import pages

    pages.write(directory)
    typer.echo(f"wrote {directory}")


@app.command()
def install(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]")] = DEFAULT_SKILLS,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
) -> None:
    """Copy the skill into DIR, by default `~/.claude/skills`.

    Asks before it replaces other content.
    """
    target = directory.expanduser() / skill.SKILL.name
    if target.is_dir() and skill.installed(target):
        typer.echo(f"{target} is up to date")
        return
    if (target.exists() or target.is_symlink()) and not force:
        if not sys.stdin.isatty():
            fail(f"{target} holds other content: use --force to replace it.")
        typer.confirm(f"{target} holds other content. Replace it?", abort=True)
    skill.install(target)
    typer.echo(f"installed {target}")
