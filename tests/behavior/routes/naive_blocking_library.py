"""Calls of a slow library in `def` routes take all 40 threads: /ping waits for them."""

import threading

from fastapi import FastAPI, HTTPException

app = FastAPI()


class Register:
    up = threading.Event()

    def look_up(self, number: int, timeout: float) -> str:
        if not self.up.wait(timeout):
            raise TimeoutError
        return f"Company {number}"


register = Register()


@app.get("/companies/{number}")
def company(number: int):
    try:
        return register.look_up(number, timeout=20)
    except TimeoutError:
        raise HTTPException(504, "The register does not answer.")


@app.get("/ping")
def ping():
    return "pong"
