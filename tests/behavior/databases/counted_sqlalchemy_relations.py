"""The recipe and the naive form, which count the statements that they send.

`/statements` answers how many there were since it was asked before.
"""

from typing import Any

from sqlalchemy import Engine, event

from recipes.databases import sqlalchemy_relations
from tests.behavior.databases import naive_sqlalchemy_relations

recipe = sqlalchemy_relations.app
naive = naive_sqlalchemy_relations.app
sent: list[str] = []


@event.listens_for(Engine, "before_cursor_execute")
def note(_: Any, __: Any, statement: str, *___: Any) -> None:
    sent.append(statement)


@recipe.get("/statements")
@naive.get("/statements")
async def statements() -> int:
    count = len(sent)
    sent.clear()
    return count
