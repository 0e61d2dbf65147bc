"""The catalogue: every recipe module, parsed into a `Recipe`.

A recipe is read as text and never imported here, so a broken one is a `Problem`
with its file and line, not a traceback.
"""

import ast
import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"

# Everything below this line of a recipe proves its promise; above it is the pattern.
EVIDENCE = "# --- evidence ---"

# The order of the site and of the skill's index.
TOPICS = {
    "routes": "Routes",
    "databases": "Databases",
    "background": "Background work",
    "websocket": "WebSocket",
    "sse": "Server-sent events",
    "streaming": "Streaming",
    "concurrency": "Concurrency",
    "lifespan": "Lifespan",
    "caching": "Caching",
    "observability": "Observability",
    "testing": "Testing",
}

# The labels of a docstring, in the order of a page.
SECTIONS = ("**Use when**", "Gotchas:", "Try it:", "Keywords:", "Related:")

MAX_ECHO = 60  # characters of a wrong name that the answer repeats

SERVER_VARIABLES = ("DATABASE_URL", "REDIS_URL", "MONGODB_URL")


class Problem(Exception):  # noqa: N818 - `check` also collects it unraised
    """A rule that a file breaks: where, and what to do about it."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(path, line, message)
        self.path = path
        self.line = line
        self.message = message

    def __str__(self) -> str:
        """`recipes/sse/feed.py:12: what to do`, as editors and agents parse it."""
        path = self.path
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        return f"{shown}:{self.line}: {self.message}"


class UnknownRecipe(LookupError):  # noqa: N818 - it reads as what a person is told
    """No recipe has this name; the message suggests the nearest."""


@dataclass(frozen=True)
class Request:
    """One line under `Try it:`, such as `POST /events?message=hi  # 201`."""

    method: str
    """An HTTP method, `SSE` for a stream, or `WS` for a WebSocket."""
    path: str
    body: str = ""
    """JSON, text, or `field=@` for a file that the reader chooses."""
    note: str = ""
    """What to expect; a note that starts with a status code is a promise."""

    @property
    def status(self) -> int | None:
        """The promised status; None promises only that it is below 400."""
        match = re.match(r"[1-5]\d\d\b", self.note)
        return int(match[0]) if match else None


@dataclass(frozen=True)
class Recipe:
    """One pattern: the prose of its docstring and the code below it."""

    path: Path
    source: str
    title: str
    summary: str
    """Markdown between the title and `**Use when**`."""
    use_when: str
    not_when: str
    gotchas: tuple[str, ...]
    requests: tuple[Request, ...]
    keywords: tuple[str, ...]
    related: tuple[str, ...]
    """Names of other recipes, such as `sse/feed`."""
    requires_python: str
    dependencies: tuple[str, ...]
    """Requirements of the PEP 723 header, such as `fastapi[standard]>=0.165`."""
    pattern: str
    """Imports and pattern: what a reader pastes."""
    evidence: str
    """`main()` and what only it needs."""

    @property
    def topic(self) -> str:
        return self.path.parent.name

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def name(self) -> str:
        """Such as `sse/feed`."""
        return f"{self.topic}/{self.stem}"

    @property
    def servers(self) -> tuple[str, ...]:
        """The server variables it reads, such as `DATABASE_URL`."""
        quoted = set(re.findall(r"""["'](\w+)["']""", self.source))
        return tuple(name for name in SERVER_VARIABLES if name in quoted)

    @property
    def naive_path(self) -> Path:
        """The naive form that the behavior test shows failing."""
        return ROOT / "tests" / "behavior" / self.topic / f"naive_{self.stem}.py"

    @property
    def test_path(self) -> Path:
        return ROOT / "tests" / "behavior" / self.topic / f"test_{self.stem}.py"


def recipe_paths(root: Path = RECIPES) -> list[Path]:
    """Every `<topic>/<pattern>.py` under `root`, in the order of `TOPICS`."""
    order = {topic: position for position, topic in enumerate(TOPICS)}
    paths = [
        path
        for path in root.glob("*/*.py")
        if not path.parent.name.startswith("_") and path.name != "__init__.py"
    ]
    return sorted(paths, key=lambda path: (order.get(path.parent.name, 99), path))


def recipes() -> tuple[Recipe, ...]:
    """All recipes of the repository that can be read."""
    return _read()[0]


def problems() -> tuple[Problem, ...]:
    """One for each recipe that cannot be read: `check` and CI fail on any."""
    return _read()[1]


@cache
def _read() -> tuple[tuple[Recipe, ...], tuple[Problem, ...]]:
    found: list[Recipe] = []
    broken: list[Problem] = []
    for path in recipe_paths():
        try:
            found.append(parse(path))
        except Problem as problem:
            broken.append(problem)
    return tuple(found), tuple(broken)


def reread() -> None:
    """Forget what was read, for a server that renews its pages."""
    _read.cache_clear()


def find(name: str) -> Recipe:
    """The recipe called `name`: `sse/feed`, or `feed` where that is unambiguous.

    Raises:
        UnknownRecipe: With the nearest names.
    """
    wanted = name.strip("/").removeprefix("recipes/").removesuffix(".py")
    by_name = {f"{path.parent.name}/{path.stem}": path for path in recipe_paths()}
    if wanted in by_name:
        return parse(by_name[wanted])
    same_stem = [path for path in by_name.values() if path.stem == wanted]
    if len(same_stem) == 1:
        return parse(same_stem[0])
    candidates = [*by_name, *(path.stem for path in by_name.values())]
    near = difflib.get_close_matches(wanted.lower(), candidates, n=3, cutoff=0.6)
    names = [n for n in by_name if n in near or n.partition("/")[2] in near]
    hint = f"Did you mean {' or '.join(names)}?" if names else "See `recipes list`."
    raise UnknownRecipe(f"No recipe is called {name[:MAX_ECHO]!r}. {hint}")


def parse(path: Path) -> Recipe:
    """Read one module.

    Raises:
        Problem: The first thing that is not as CONTRIBUTING describes it.
    """
    source = _source(path)
    try:
        module = ast.parse(source)
    except SyntaxError as error:
        raise Problem(path, error.lineno or 1, f"does not parse: {error.msg}") from None
    docstring = ast.get_docstring(module)
    if not docstring:
        raise Problem(path, 1, "add a module docstring: title, use when, gotchas …")
    first = module.body[0]
    header = _header(path, source)
    prose = _Prose(path, first.lineno, docstring.splitlines())
    prose.check_sections()
    pattern, evidence = _split_code(path, source, first.end_lineno or first.lineno)
    return Recipe(
        path=path,
        source=source,
        title=prose.title(),
        summary=prose.summary(),
        use_when=prose.bold("Use when", until="**Not when**"),
        not_when=prose.bold("Not when", until="\n\n"),
        gotchas=prose.items("Gotchas:"),
        requests=prose.requests(),
        keywords=prose.names("Keywords:"),
        related=prose.names("Related:"),
        requires_python=str(header.get("requires-python", "")),
        dependencies=_dependencies(path, source, header),
        pattern=pattern,
        evidence=evidence,
    )


def _source(path: Path) -> str:
    try:
        source = path.read_bytes().decode()  # reading as text would hide line ends
    except UnicodeDecodeError as error:
        raise Problem(path, 1, f"is not UTF-8: {error.reason}") from None
    before, found, _ = source.partition("\r")
    if found:
        line = before.count("\n") + 1
        raise Problem(path, line, "end lines with LF alone: this one has a CR")
    return source


def _header(path: Path, source: str) -> dict[str, Any]:
    """The PEP 723 block at the top."""
    match = re.match(r"# /// script\n((?:#(?: .*)?\n)+?)# ///\n", source)
    if match is None:
        raise Problem(path, 1, "start with a PEP 723 header: `# /// script` … `# ///`")
    text = "".join(line[2:] for line in match[1].splitlines(keepends=True))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Problem(path, 1, f"the PEP 723 header is not TOML: {error}") from None


def _dependencies(path: Path, source: str, header: dict[str, Any]) -> tuple[str, ...]:
    found = header.get("dependencies", [])
    line = source.partition("dependencies")[0].count("\n") + 1
    if not (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        raise Problem(path, line, 'write `dependencies = ["…"]`: a list of strings')
    for text in found:
        try:
            Requirement(text)
        except InvalidRequirement:
            raise Problem(path, line, f"{text!r} is no requirement") from None
    return tuple(found)


def _split_code(path: Path, source: str, docstring_end: int) -> tuple[str, str]:
    lines = source.splitlines()
    marks = [number for number, line in enumerate(lines) if line == EVIDENCE]
    if len(marks) != 1:
        where = marks[1] + 1 if marks else len(lines)
        raise Problem(path, where, f"have exactly one line `{EVIDENCE}` above main()")
    pattern = "\n".join(lines[docstring_end : marks[0]]).strip("\n")
    evidence = "\n".join(lines[marks[0] + 1 :]).strip("\n")
    return pattern, evidence


@dataclass(frozen=True)
class _Prose:
    """The docstring, with the line numbers of the file for error messages."""

    path: Path
    start: int
    lines: list[str]

    def problem(self, index: int, message: str) -> Problem:
        return Problem(self.path, self.start + index, message)

    def find(self, prefix: str) -> int:
        found = [n for n, line in enumerate(self.lines) if line.startswith(prefix)]
        if not found:
            raise self.problem(0, f"the docstring needs a line that starts `{prefix}`")
        if len(found) > 1:
            raise self.problem(found[1], f"this is the second `{prefix}`: keep one")
        return found[0]

    def check_sections(self) -> None:
        """Each section once, in order, whole: a page drops what is in between."""
        starts = [self.find(label) for label in SECTIONS]
        for label, before, after in zip(SECTIONS, starts, starts[1:], strict=False):
            if after < before:
                raise self.problem(after, f"this belongs below `{label}`")
        last = ""  # line that is not blank
        for index, line in enumerate(self.lines):
            alone = index > starts[0] and line and not self.lines[index - 1]
            if alone and not line.startswith(SECTIONS) and last not in SECTIONS:
                raise self.problem(index, "a blank line cuts this off its section")
            last = line or last

    def title(self) -> str:
        title = self.lines[0]
        if not re.fullmatch(r"[A-Z].{8,70}\.", title):
            message = "the first line is the title: 10 to 72 characters, with a period"
            raise self.problem(0, message)
        return title.removesuffix(".")

    def summary(self) -> str:
        end = self._use_when()
        summary = "\n".join(self.lines[1:end]).strip()
        if not summary:
            raise self.problem(1, "say in a sentence or two how the pattern works")
        return summary

    def _use_when(self) -> int:
        return self.find("**Use when**")

    def bold(self, label: str, until: str) -> str:
        """The words after `**label**`, up to `until`."""
        index = self._use_when()
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(self.lines[index:]))
        _, found, rest = text.partition(f"**{label}**")
        words = rest.partition(until)[0].strip()
        if not (found and words):
            raise self.problem(index, f"write `**{label}** …` in this paragraph")
        return words

    def items(self, label: str) -> tuple[str, ...]:
        """The `- ` list under `label`, continuation lines joined."""
        index = self.find(label)
        found: list[str] = []
        for line in self._block(index):
            if line.startswith("- "):
                found.append(line[2:].strip())
            elif line.startswith("  ") and found:
                found[-1] += f" {line.strip()}"
            else:
                raise self.problem(self.lines.index(line), "write a list item: `- …`")
        if not found:
            raise self.problem(index, f"`{label}` needs at least one item: `- …`")
        return tuple(found)

    def names(self, label: str) -> tuple[str, ...]:
        """The comma-separated words after `label`, which may wrap."""
        index = self.find(label)
        text = [self.lines[index].removeprefix(label)]
        for line in self.lines[index + 1 :]:
            if not line.strip() or re.match(r"[A-Z]\w+:", line):
                break
            text.append(line)
        found = [word.strip() for word in " ".join(text).split(",")]
        if not all(found):
            raise self.problem(index, f"`{label}` takes words separated by commas")
        return tuple(found)

    def requests(self) -> tuple[Request, ...]:
        index = self.find("Try it:")
        found = [self._request(line) for line in self._block(index)]
        if not found:
            raise self.problem(index, "`Try it:` needs an indented line: `GET /path`")
        return tuple(found)

    def _request(self, line: str) -> Request:
        match = re.fullmatch(
            r"    (?P<method>SSE|WS|GET|POST|PUT|PATCH|DELETE) (?P<path>/\S*)"
            r"(?: (?P<body>\S.*?))?(?:  # (?P<note>.+))?",
            line,
        )
        if match is None:
            message = "write `    METHOD /path [body]  # note`, METHOD also SSE or WS"
            raise self.problem(self.lines.index(line), message)
        return Request(**match.groupdict(default=""))

    def _block(self, index: int) -> list[str]:
        """The lines after the blank line under `index`, up to the next blank one."""
        rest = self.lines[index + 1 :]
        if rest and not rest[0].strip():
            rest = rest[1:]
        end = next((n for n, line in enumerate(rest) if not line.strip()), len(rest))
        return rest[:end]
