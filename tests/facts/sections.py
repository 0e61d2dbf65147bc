"""Sections of the guide on older knowledge: their code and its output."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes._cookbook.catalogue import ROOT

BAR = "| "
PAGES = sorted((ROOT / "docs" / "guides").glob("older_knowledge_*.md"))


def headings(path: Path) -> list[str]:
    return re.findall(r"^## (.+)$", path.read_text("utf-8"), re.MULTILINE)


def section(heading: str) -> str:
    """What is below the heading that starts with `heading`, up to the next one."""
    for path in PAGES:
        for part in path.read_text("utf-8").split("\n## ")[1:]:
            if part.startswith(heading):
                return part
    raise LookupError(f"no section starts with {heading!r}")


def told(heading: str) -> list[str]:
    """The lines of the section's output."""
    return _fence(heading, "text").splitlines()


def code(heading: str) -> str:
    return _fence(heading, "python")


def loaded(heading: str, show: Callable[..., None] = print, **names: Any) -> Any:
    """The names that the section's code defines; `show` is its `print`."""
    names |= {"__name__": "shown", "print": show}
    exec(compile(code(heading), f"<{heading}>", "exec"), names)  # noqa: S102 - our own page
    return names


def _fence(heading: str, language: str) -> str:
    fence = rf"^```{language}\n(.*?)^```$"
    match = re.search(fence, section(heading), re.DOTALL | re.MULTILINE)
    if match is None:
        raise LookupError(f"no {language} fence below {heading!r}")
    return match[1]
