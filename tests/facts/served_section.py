"""The app of the section that the variable `SECTION` names, to be served.

Each line that it prints starts with a bar, to tell it from what uvicorn logs.
"""

import os

from tests.facts.sections import BAR, loaded


def show(*values: object) -> None:
    print(BAR + " ".join(map(str, values)), flush=True)  # noqa: T201


app = loaded(os.environ["SECTION"], show)["app"]
