"""What holds for every recipe beyond its form, checked without importing it."""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recipes._cookbook.catalogue import (
    EVIDENCE,
    RECIPES,
    ROOT,
    TOPICS,
    Problem,
    Recipe,
    parse,
    recipe_paths,
)

MAX_LINES = 150
MAX_TOKENS = 1600  # characters / 4: no tokenizer is the same for all readers
CHARACTERS_PER_TOKEN = 4
MIN_KEYWORDS = 3

_DRIVER = re.compile(r"(?:postgresql|sqlite|mysql)\+(\w+)")
_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "expandvars"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_all() -> list[Problem]:
    """Every broken rule of every recipe of the repository."""
    problems = list(strays())
    for path in recipe_paths():
        try:
            problems += check(parse(path))
        except Problem as problem:
            problems.append(problem)
    return problems


def strays(root: Path = RECIPES) -> Iterator[Problem]:
    """Modules that nothing would list, test or copy."""
    machinery = {root / "__init__.py", root / "__main__.py"}
    machinery |= set((root / "_cookbook").rglob("*.py"))
    for path in sorted({*root.rglob("*.py")} - machinery - {*recipe_paths(root)}):
        yield Problem(path, 1, "is no recipe: name it recipes/<topic>/<pattern>.py")


def check(recipe: Recipe) -> list[Problem]:
    """The rules that `recipe` breaks."""
    tree = ast.parse(recipe.source)
    return [
        *_size(recipe),
        *_names(recipe),
        *_references(recipe),
        *_shape(recipe, tree),
        *_evidence(recipe),
        *_demo(recipe, tree),
        *_header(recipe),
        *_imports(recipe, tree),
        *_drivers(recipe, tree),
        *_environment(recipe, tree),
        *_companions(recipe),
    ]


def _line(recipe: Recipe, text: str) -> int:
    """The number of the first line that contains `text`."""
    lines = recipe.source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if text in line), 1)


def _size(recipe: Recipe) -> Iterator[Problem]:
    lines = len(recipe.source.splitlines())
    if lines > MAX_LINES:
        message = f"{lines} lines, at most {MAX_LINES}: shorten it or make it two"
        yield Problem(recipe.path, lines, message)
    tokens = len(recipe.source) // CHARACTERS_PER_TOKEN
    if tokens > MAX_TOKENS:
        message = f"about {tokens} tokens, at most {MAX_TOKENS}: shorten it"
        yield Problem(recipe.path, lines, message)


def _names(recipe: Recipe) -> Iterator[Problem]:
    if recipe.topic not in TOPICS:
        message = f"unknown topic {recipe.topic!r}: use one of {', '.join(TOPICS)}"
        yield Problem(recipe.path, 1, message)
    if not re.fullmatch("[a-z][a-z0-9_]*", recipe.stem):
        message = f"name the file in lower_case, as a module: not {recipe.stem!r}"
        yield Problem(recipe.path, 1, message)
    if recipe.stem in sys.stdlib_module_names | _distributions().keys():
        message = (
            f"a script's folder comes first on sys.path: {recipe.stem!r} would hide "
            "an importable module, choose another file name"
        )
        yield Problem(recipe.path, 1, message)


def _references(recipe: Recipe) -> Iterator[Problem]:
    if len(recipe.keywords) < MIN_KEYWORDS:
        message = f"give at least {MIN_KEYWORDS} keywords: what would a reader search?"
        yield Problem(recipe.path, _line(recipe, "Keywords:"), message)
    known = {f"{p.parent.name}/{p.stem}" for p in recipe_paths()} - {recipe.name}
    for name in recipe.related:
        if name not in known:
            message = f"related recipe {name!r} does not exist: write topic/pattern"
            yield Problem(recipe.path, _line(recipe, "Related:"), message)


def _shape(recipe: Recipe, tree: ast.Module) -> Iterator[Problem]:
    made = {
        name
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        for name in _defined(node)
    }
    last = len(recipe.source.splitlines())
    if "app" not in made:
        yield Problem(recipe.path, last, "assign `app = FastAPI(...)` at module level")
    functions = {node.name for node in tree.body if isinstance(node, _Function)}
    if "main" not in functions:
        yield Problem(recipe.path, last, "define main(), which proves the promise")
    if not _calls_main(tree.body[-1]):
        message = 'end with `if __name__ == "__main__":`, which calls main'
        yield Problem(recipe.path, last, message)


def _calls_main(node: ast.stmt) -> bool:
    """Whether this is the main guard, and it calls `main`."""
    if not isinstance(node, ast.If):
        return False
    is_guard = ast.unparse(node.test) == "__name__ == '__main__'"
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return is_guard and any(ast.unparse(called) == "main" for called in calls)


def _evidence(recipe: Recipe) -> Iterator[Problem]:
    if not re.search(r"^ *# > \S", recipe.evidence, re.MULTILINE):
        message = (
            "main() prints its evidence, each line below its print as `# > …`: run "
            "`uv run pytest tests/test_examples.py --update-examples` to fill them in"
        )
        yield Problem(recipe.path, len(recipe.source.splitlines()), message)


def _demo(recipe: Recipe, tree: ast.Module) -> Iterator[Problem]:
    """Who pastes the pattern must see which lines need what is not pasted."""
    end = recipe.source.splitlines().index(EVIDENCE) + 1
    marked = _demo_lines(recipe.source)
    below = {n for node in tree.body if node.lineno > end for n in _defined(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.lineno > end:
            continue
        if node.id in below and node.lineno not in marked:
            message = (
                f"{node.id!r} is only there for the evidence: end it with `# demo`"
            )
            yield Problem(recipe.path, node.lineno, message)


def _demo_lines(source: str) -> set[int]:
    """The lines that end in a comment that starts `# demo`."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {c.start[0] for c in comments if re.match(r"# demo\b", c.string)}


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, _Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (a.asname or a.name.partition(".")[0] for a in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = (name for target in targets for name in ast.walk(target))
        yield from (name.id for name in names if isinstance(name, ast.Name))


@cache
def _project() -> tuple[str, dict[str, Requirement]]:
    """Python and the requirements of pyproject.toml, by canonical name."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project, groups = pyproject["project"], pyproject["dependency-groups"]
    texts = [*project["dependencies"], *(t for group in groups.values() for t in group)]
    parsed = [Requirement(text) for text in texts]
    return project["requires-python"], {canonicalize_name(r.name): r for r in parsed}


def _header(recipe: Recipe) -> Iterator[Problem]:
    python, floors = _project()
    if recipe.requires_python != python:
        message = f'the header needs `requires-python = "{python}"`, as in pyproject'
        yield Problem(recipe.path, 2, message)
    for text in recipe.dependencies:
        requirement = Requirement(text)
        floor = floors.get(canonicalize_name(requirement.name))
        if floor is None:
            message = f"add {text!r} to [project] dependencies in pyproject.toml"
        elif floor != requirement:
            message = f"the header says {text!r}, pyproject.toml says {str(floor)!r}"
        else:
            continue
        yield Problem(recipe.path, _line(recipe, text), message)


def _imports(recipe: Recipe, tree: ast.Module) -> Iterator[Problem]:
    available = _provided(recipe.dependencies)
    siblings = {path.stem for path in recipe.path.parent.glob("*.py")}
    for line, module in _imported(tree):
        if module in {"", "recipes", *siblings}:
            message = "a recipe stands alone: do not import another one"
        elif module in sys.stdlib_module_names:
            continue
        elif not available & set(_distributions().get(module, [module])):
            message = f"declare the package of {module!r} in the PEP 723 header"
        else:
            continue
        yield Problem(recipe.path, line, message)


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and top-level module of each import; "" for a relative one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = "" if node.level else node.module or ""
            yield node.lineno, module.partition(".")[0]


def _provided(dependencies: tuple[str, ...]) -> set[str]:
    """Distributions that are declared, or that come with `fastapi[standard]`."""
    declared = {Requirement(text).name for text in dependencies}
    names = declared | _standard() if "fastapi" in declared else declared
    installed = {name for found in _distributions().values() for name in found}
    canonical = {canonicalize_name(name) for name in names}
    return {name for name in installed if canonicalize_name(name) in canonical}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions that provide each importable top-level module."""
    return packages_distributions()


@cache
def _standard() -> set[str]:
    """What `fastapi[standard]` installs, with all it requires."""
    seen: set[tuple[str, str]] = set()
    todo = [("fastapi", "standard")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                extras = requirement.extras or {""}
                todo += [(canonicalize_name(requirement.name), e) for e in extras]
    return {name for name, _ in seen}


def _drivers(recipe: Recipe, tree: ast.Module) -> Iterator[Problem]:
    """A driver is imported by name, so no import statement shows it."""
    declared = {canonicalize_name(Requirement(d).name) for d in recipe.dependencies}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for driver in _DRIVER.findall(node.value):
                if driver not in declared:
                    message = f"declare the driver {driver!r} in the PEP 723 header"
                    yield Problem(recipe.path, node.lineno, message)


def _environment(recipe: Recipe, tree: ast.Module) -> Iterator[Problem]:
    """Environment read at import is fixed before a test or an operator can set it."""
    names = _ENVIRONMENT | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in _ENVIRONMENT
    }
    for node in _at_import(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in names:
                message = "read the environment in the lifespan, not at import"
                yield Problem(recipe.path, node.lineno, message)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: function bodies do not."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, _Function | ast.Lambda):
        defaults = (*node.args.defaults, *filter(None, node.args.kw_defaults))
        children = iter((*defaults, *getattr(node, "decorator_list", ())))
    for child in children:
        yield from _at_import(child)


def _companions(recipe: Recipe) -> Iterator[Problem]:
    for path in (recipe.test_path, recipe.naive_path):
        if not path.exists():
            message = f"write {path.relative_to(ROOT)}: the promise, shown and broken"
            yield Problem(recipe.path, 1, message)
    for variable in recipe.servers:
        if not re.search(rf"{variable}.*\w+://", recipe.source):
            message = f"name {variable} with an example URL in the error without it"
            yield Problem(recipe.path, _line(recipe, variable), message)
