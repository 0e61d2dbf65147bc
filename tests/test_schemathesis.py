"""No request that schemathesis makes up from a recipe's OpenAPI schema is a 500."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from recipes._cookbook.catalogue import recipe_paths
from tests.conftest import Serve, environment

EXAMPLES = 6  # for each operation, and for each kind: valid, invalid
SECONDS = 20  # longer than any limit of a recipe


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_no_request_is_a_server_error(
    path: Path, serve: Serve, request: pytest.FixtureRequest
) -> None:
    topic, stem = path.parent.name, path.stem
    env = environment(request, topic, stem)
    server = serve(f"recipes.{topic}.{stem}", env=env)
    attack_all(server.url)
    assert "Traceback" not in server.log


def test_a_server_error_is_found(serve: Serve) -> None:
    with pytest.raises(AssertionError, match="/fragile/"):
        attack_all(serve("tests.fragile", strict=False).url)


def attack_all(url: str) -> None:
    """Send each operation of the app valid and invalid requests."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [each.ok() for each in found if isinstance(each, Ok)]
    assert len(operations) == len(found)
    for operation in operations:
        if not is_endless(operation):
            for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                attack(operation, mode)


def is_endless(operation: Any) -> bool:
    """Whether it answers with a stream of events; those have tests of their own."""
    responses = operation.definition.raw["responses"].values()
    return any("text/event-stream" in each.get("content", {}) for each in responses)


def attack(operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case[Any]) -> None:
        answer = case.call(timeout=SECONDS)
        # 502 to 504 are answers: of what is behind, or of a bound.
        assert answer.status_code != 500, f"{case.as_curl_command()}\n{answer.text}"

    with suppress(Unsatisfiable):  # without input there is none that is invalid
        send()
