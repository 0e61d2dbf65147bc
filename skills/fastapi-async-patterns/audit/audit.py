# /// script
# requires-python = ">=3.11"
# dependencies = ["ast-grep-cli>=0.45", "ruff>=0.15"]
# ///
"""Find async FastAPI code that fails under load, on disconnects or at a stop.

    uv run audit.py src tests        what was found; exit status 1 if it must change
    uv run audit.py --fix src        apply mechanical fixes, report the rest
    uv run audit.py --format json    for programs; `github` annotates a pull request

Each finding says what happens at run time, and which recipe to read. A comment
`# ast-grep-ignore: <rule>` on the line above, or Ruff's `# noqa: <rule>`, silences one.
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPPED = "!**/{node_modules,venv,build,dist}/**"

# What Ruff sees, in the words of this audit. Style is not its business.
RUFF = {
    "ASYNC1": ("warning", "recipes/routes/deadline.py"),
    "ASYNC2": ("error", "recipes/routes/def_or_async.py"),
    "FAST": ("info", ""),
    "RUF006": ("warning", "recipes/background/after_response.py"),
    "S113": ("warning", "recipes/lifespan/http_client.py"),
}
RUFF_IGNORED = "ASYNC109,ASYNC110,ASYNC115"  # style: how to wait, what to call it
SAME = {"dropped-task": "RUF006", "no-timeout": "S113"}  # one `noqa` is enough

# What blocks the event loop, or is made each time, costs nothing where nobody waits.
ABOUT_LOAD = re.compile("ASYNC2|blocking-call|client-per-request")
NO_LOAD = re.compile(
    r"(^|/)(test_[^/]*|[^/]*_test|conftest|cli|__main__)\.py$"
    r"|(^|/)(cli|commands|scripts|migrations)/"
)
# What `on_event` becomes: FastAPI nests the lifespans of routers in that of the app.
LIFESPAN = """

@asynccontextmanager
async def {name}_lifespan(_: object):
    {first}
    {second}


{owner}.include_router(APIRouter(lifespan={name}_lifespan))
"""
IMPORTS = {
    "asynccontextmanager": "from contextlib import asynccontextmanager\n",
    "APIRouter": "from fastapi import APIRouter\n",
}
CONTENTS = re.compile(r"\b(read|write)(_text|_bytes)?\b|\bopen\b|\b(r?glob|walk)\b")


@dataclass(frozen=True, order=True)
class Finding:
    """One place, what happens there at run time, and what to read."""

    file: str
    line: int
    severity: str
    rule: str
    message: str
    help: str

    def __str__(self) -> str:
        """A line that editors can jump to, and the explanation below it."""
        head = f"{self.file}:{self.line}: {self.severity}: {self.rule}"
        return "\n    ".join(part for part in (head, self.message, self.help) if part)

    @property
    def annotation(self) -> str:
        """A workflow command of GitHub Actions."""
        level = "notice" if self.severity == "info" else self.severity
        text = f"{self.message} {self.help}".replace("%", "%25")
        return f"::{level} file={self.file},line={self.line},title={self.rule}::{text}"


def main() -> int:
    """Print what was found; 1 if anything is more than information."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", default=["."], metavar="PATH")
    parser.add_argument("--fix", action="store_true", help="apply mechanical fixes")
    parser.add_argument("--format", choices=("text", "json", "github"), default="text")
    options = parser.parse_args()
    for path in options.paths:
        if not Path(path).exists():
            parser.error(f"{path} does not exist")
    if options.fix:
        _run(_ast_grep(), "--update-all", *options.paths)
        for file in {
            f.file for f in by_ast_grep(options.paths) if f.rule == "on-event"
        }:
            replace_on_event(Path(file))
    found = {
        (f.file, f.line, f.rule): f
        for f in by_ast_grep(options.paths)
        if not harmless(f.rule, Path(f.file), f.line, options.paths)
    }
    places = {(file, line) for file, line, _ in found}
    found |= {
        (f.file, f.line, f.rule): f
        for f in by_ruff(options.paths)
        if (f.file, f.line) not in places  # said already, with more
    }
    show(sorted(found.values()), options.format)
    return int(any(f.severity != "info" for f in found.values()))


def by_ast_grep(paths: list[str]) -> Iterator[Finding]:
    """What the rules beside this file find."""
    for line in _run(_ast_grep(), "--json=stream", *paths).splitlines():
        match = json.loads(line)
        first = match["lines"].splitlines()[0]
        if match["ruleId"] == "unused-suppression" or re.search(
            rf"#\s*noqa:.*\b{SAME.get(match['ruleId'], 'none')}\b", first
        ):
            continue
        yield Finding(
            Path(match["file"]).as_posix(),
            match["range"]["start"]["line"] + 1,
            match["severity"],
            match["ruleId"],
            match["message"],
            match["note"] or "",
        )


def by_ruff(paths: list[str]) -> Iterator[Finding]:
    """What Ruff's own rules about async code find."""
    command = [_tool("ruff"), "check", "--isolated", "--output-format=json"]
    rules = [f"--select={','.join(RUFF)}", f"--ignore={RUFF_IGNORED}"]
    for match in json.loads(_run(command, *rules, "--exit-zero", *paths)):
        code = match["code"] or ""
        known = next((RUFF[start] for start in RUFF if code.startswith(start)), None)
        if known is None:
            continue  # a syntax error: the user's other tools say so
        severity, recipe = known
        file = Path(match["filename"])
        row, column = match["location"]["row"], match["location"]["column"]
        if harmless(code, file, row, paths):
            continue
        call = source_of_call(file, row, column)
        if code == "ASYNC240" and not CONTENTS.search(call):
            severity = "info"  # a look at the directory is mostly quick
        if code == "S113" and ("**" in call or not call.startswith("requests")):
            continue  # the timeout may be in there; ours says more about httpx
        if file.is_relative_to(Path.cwd()):
            file = file.relative_to(Path.cwd())
        yield Finding(
            file.as_posix(),
            row,
            severity,
            code,
            re.sub(r"\s+", " ", match["message"]),
            f"Read {recipe}." if recipe else "",
        )


def replace_on_event(file: Path) -> None:
    """Give each event handler of a module a lifespan of its own, in the same place."""
    if not (body := _tree(file).body):
        return  # no Python that can be read
    source = file.read_text("utf-8").rstrip("\n") + "\n"
    lines = source.splitlines(keepends=True)
    for node in reversed(body):
        if found := lifespan_for(node):
            start, end, lifespan = found
            lines.insert(end, lifespan)
            del lines[start - 1 : node.lineno - 1]  # the decorator
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    first = next((n for n in imports if "__future__" not in ast.unparse(n)), None)
    if first and "".join(lines) != source:
        missing = [line for name, line in IMPORTS.items() if name not in names]
        lines[first.lineno - 1 : first.lineno - 1] = missing
        file.write_text("".join(lines), "utf-8")
        _tree.cache_clear()  # lines have moved


def lifespan_for(node: ast.stmt) -> tuple[int, int, str] | None:
    """The first and last line of an event handler, and the lifespan that calls it."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    match node.decorator_list:
        case [
            ast.Call(
                func=ast.Attribute(value=owner, attr="on_event"),
                args=[ast.Constant(value="startup" | "shutdown" as event)],
            ) as decorator
        ] if not ast.unparse(node.args):
            call = "await " * isinstance(node, ast.AsyncFunctionDef) + f"{node.name}()"
            steps = [call, "yield"] if event == "startup" else ["yield", call]
            text = LIFESPAN.format(
                name=node.name,
                first=steps[0],
                second=steps[1],
                owner=ast.unparse(owner),
            )
            return decorator.lineno, node.end_lineno or node.lineno, text
    return None


def harmless(rule: str, file: Path, line: int, paths: list[str]) -> bool:
    """Whether it is about load, in a place that has none: no request waits for it."""
    if not ABOUT_LOAD.match(rule):
        return False
    file = file.absolute()
    # A folder above the project says nothing, whatever its name.
    tops = [Path.cwd(), *(Path(path).absolute() for path in paths)]
    top = next((top for top in tops if file.is_relative_to(top)), file.parent)
    if NO_LOAD.search(file.relative_to(top).as_posix()):
        return True
    around = [
        node
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.lineno <= line <= (node.end_lineno or 0)
    ]
    if not around:
        return False
    inner = max(around, key=lambda node: node.lineno)
    return "lifespan" in inner.name and any(
        isinstance(node, ast.Yield) for node in ast.walk(inner)
    )


def source_of_call(file: Path, line: int, column: int) -> str:
    """The call that starts there, or has its function there, with its arguments."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Call) and (node.lineno, node.col_offset) == (
            line,
            column - 1,
        ):
            return ast.unparse(node)
    return ""


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def show(found: list[Finding], form: str) -> None:
    """Print the findings, and how many there are."""
    if form == "json":
        print(json.dumps([asdict(finding) for finding in found], indent=2))
        return
    for finding in found:
        print(finding.annotation if form == "github" else finding)
    counts = [sum(f.severity == s for f in found) for s in ("error", "warning", "info")]
    print("{} errors, {} warnings, {} for information".format(*counts), file=sys.stderr)


def _ast_grep() -> list[str]:
    config = f"--config={HERE / 'sgconfig.yml'}"
    return [_tool("ast-grep"), "scan", config, f"--globs={SKIPPED}"]


def _tool(name: str) -> str:
    """The program that came with this script's dependencies."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing: run this with `uv run {Path(__file__).name}`.")
    return found


def _run(command: list[str], *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own arguments, and the user's paths
        [*command, *arguments], check=False, capture_output=True, encoding="utf-8"
    )
    # Findings of severity error make ast-grep exit with 1.
    if done.returncode not in {0, 1} or (done.returncode and not done.stdout.strip()):
        sys.exit(f"{Path(command[0]).name}: {done.stderr.strip().splitlines()[0]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
