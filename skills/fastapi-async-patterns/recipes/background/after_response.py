# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Do small work after the response.

`BackgroundTasks` starts when the response has been sent, so no error can reach the
client. Each task therefore has its own time limit and error handling, and they run
concurrently: one that fails or hangs does not affect the others. Results are counted,
failures logged.

**Use when** the work takes seconds and may be lost: an email, a counter, a warm cache.
**Not when** it must happen: commit it to an outbox table together with your data, or
hand it to a job queue, before you respond.

Gotchas:

- Start uvicorn with `--timeout-graceful-shutdown 10`, above `TIME_LIMIT`: what SIGTERM
  then cancels is logged as `lost`; after SIGKILL nothing is. Without it a client that
  stalls in its body holds up the stop forever.
- Open sessions in the task itself. One from a `yield` dependency stays open until all
  tasks are done; with `scope="function"` it is closed before they start.
- `TIME_LIMIT` does not stop a thread (`asyncio.to_thread`): give a blocking client its
  own timeout.
- The tasks never start if the endpoint raises, or if the `Response` that it returns
  has its own `background=`.
- Log user input and exceptions with `%r`: a newline in them forges a log entry. Send
  private data in the body: access logs contain the query string.
- A 422 repeats its input, so NaN or half an emoji in a body is a 500:
  "Out of range float values are not JSON compliant", "surrogates not allowed". If that
  matters, leave `input` out in a handler for `RequestValidationError`.
- Not covered: who may send, and how often. `SLOTS` and `/outcomes` are per worker.

Try it:

    POST /shares {"email": "ada@example.com", "note": "Look at this"}  # 202
    POST /shares {"email": "ada@nowhere.example"}  # 202, then send_mail fails
    POST /shares {"email": "not-an-email"}  # 422
    GET /outcomes

Keywords: BackgroundTasks, fire and forget, add_task, send email, graceful shutdown
Related: databases/sqlalchemy_session, lifespan/resources
"""

import asyncio
import logging
import secrets
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import BackgroundTasks, FastAPI, Request
from pydantic import BaseModel, EmailStr, Field

TIME_LIMIT = 3  # seconds for a task, with its wait for a slot
SLOTS = 20  # tasks of one name at a time; the others wait, within their limit

logger = logging.getLogger(__name__)
Task = Callable[[], Awaitable[None]]


class TaskRunner:
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._slots: dict[str, asyncio.Semaphore] = {}

    async def run(self, request_id: str, **tasks: Task) -> None:
        # Concurrently: no task waits for one that hangs; a stop waits one TIME_LIMIT.
        async with asyncio.TaskGroup() as group:
            for name, task in tasks.items():
                group.create_task(self._run_one(request_id, name, task))

    async def _run_one(self, request_id: str, name: str, task: Task) -> None:
        # Slots by name: a mail service that hangs takes none from the counters.
        slots = self._slots.setdefault(name, asyncio.Semaphore(SLOTS))
        try:
            async with asyncio.timeout(TIME_LIMIT), slots:
                await task()
            self.outcomes[f"{name}: done"] += 1
        except Exception:  # all of them: nothing above could handle one
            self.outcomes[f"{name}: failed"] += 1
            error = traceback.format_exc()  # %r: no newline in it forges a line
            logger.warning("%s %s: failed: %r", request_id, name, error)
        except asyncio.CancelledError:
            logger.warning("%s %s: lost, cancelled", request_id, name)
            raise


class Share(BaseModel):
    email: EmailStr
    note: Annotated[str, Field(max_length=1000)] = ""


async def send_mail(email: str, note: str) -> None:  # demo: your mail service
    await asyncio.sleep(0.05)
    if email.endswith("@nowhere.example"):
        raise ConnectionError(f"550 No such domain: {email} {note}")


async def count_share() -> None:  # demo: your database, with a session of its own
    await asyncio.sleep(0.05)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, TaskRunner]]:
    yield {"runner": TaskRunner()}


app = FastAPI(lifespan=lifespan)


@app.post("/shares", status_code=202, max_body_size=64 * 1024)
async def share_page(
    request: Request, share: Share, tasks: BackgroundTasks
) -> dict[str, str]:
    runner: TaskRunner = request.state.runner
    request_id = secrets.token_hex(4)  # finds the log lines of this request
    mail = partial(send_mail, share.email, share.note)
    tasks.add_task(runner.run, request_id, send_mail=mail, count_share=count_share)
    return {"request_id": request_id}


@app.get("/outcomes")
async def outcomes(request: Request) -> dict[str, int]:
    runner: TaskRunner = request.state.runner
    return runner.outcomes


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    logger.disabled = True
    with TestClient(app) as client:
        for email in ("ada@example.com", "ada@nowhere.example"):
            print(client.post("/shares", json={"email": email}).status_code)
            # > 202
            # > 202
        print(client.get("/outcomes").json())
        # > {'send_mail: done': 1, 'count_share: done': 2, 'send_mail: failed': 1}


if __name__ == "__main__":
    main()
