# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "pymongo>=4.16"]
# ///
"""Read and write MongoDB with PyMongo's async client.

One `AsyncMongoClient` lives as long as the app. Pydantic models decide what comes in
and goes out; outside, an `ObjectId` is text. A unique index turns a second insert into
a 409. While the server is down the answer is a 503 within seconds.

**Use when** documents live in MongoDB, or the code still uses Motor. **Not when**
rows refer to each other: use PostgreSQL with asyncpg or SQLAlchemy.

Gotchas:

- From Motor (deprecated): new are `await client.close()`, `await c.aggregate(...)` and
  `await c.list_indexes()`. As before, `find()` is not awaited and `to_list()` is.
- `close()` waits 30 s for a server that is down or hangs, also with `timeoutMS`.
- "Cannot use AsyncMongoClient in different event loop": make it in the lifespan.
- After a 503 the product may be stored: a retry gets a 409. A new field of `Product`
  needs a default: an old document without it is a 500.
- A filter made of raw JSON lets clients send `{"$ne": null}`: declare each field.
- The tests run on SecantusDB, which is MongoDB-compatible. Not covered: transactions;
  NaN or half an emoji in a body, see background/after_response.

Try it:

    POST /products {"sku": "tea-1", "name": "Green tea"}  # 201, the second time 409
    GET /products
    GET /products/0123456789abcdef01234567  # 404

Keywords: MongoDB, Motor, ObjectId, pymongo, AsyncMongoClient, DuplicateKeyError, NoSQL
Related: lifespan/resources, databases/sqlalchemy_session, databases/asyncpg_pool
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pymongo
from bson import ObjectId
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import ConnectionFailure, DuplicateKeyError, ExecutionTimeout

MAX_POOL = 20  # connections of one worker
TIMEOUT = 3  # seconds to find a server (else 30), get a connection and the answer
PAGE = 50
FIRST = "0" * 24  # before every id
NO_URL = "Set MONGODB_URL, such as mongodb://localhost:27017/app"

Document = dict[str, Any]
Products = AsyncCollection[Document]
DocumentId = Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{24}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class NewProduct(BaseModel):
    sku: Text
    name: Text


class Product(NewProduct):
    id: Annotated[str, BeforeValidator(str), Field(validation_alias="_id")]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Products]]:
    if not (url := os.environ.get("MONGODB_URL")):
        raise RuntimeError(NO_URL)
    client: AsyncMongoClient[Document] = AsyncMongoClient(
        url, maxPoolSize=MAX_POOL, timeoutMS=TIMEOUT * 1000
    )
    try:
        products = client.get_default_database("app").products  # "app" if URL has none
        # If this takes longer, the app does not start: index a large collection before.
        await products.create_index("sku", unique=True)
        yield {"products": products}
    finally:
        with pymongo.timeout(TIMEOUT):  # which `timeoutMS` does not limit
            await client.close()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(ConnectionFailure)  # no server, no free connection, or lost it
@app.exception_handler(ExecutionTimeout)
async def unavailable(_: Request, error: Exception) -> JSONResponse:
    logging.getLogger(__name__).warning("database: %s", error)
    return JSONResponse({"detail": "Try again later"}, 503, {"Retry-After": "2"})


@app.post("/products", status_code=201, response_model=Product, max_body_size=2**16)
async def create_product(request: Request, new: NewProduct) -> Document:
    products: Products = request.state.products
    document = new.model_dump()
    try:
        await products.insert_one(document)  # adds `_id`
    except DuplicateKeyError:
        raise HTTPException(409, "This SKU is taken") from None
    return document


@app.get("/products/{product_id}", response_model=Product)
async def get_product(request: Request, product_id: DocumentId) -> Document:
    products: Products = request.state.products
    document = await products.find_one({"_id": ObjectId(product_id)})
    if document is None:
        raise HTTPException(404, "No such product")
    return document


@app.get("/products", response_model=list[Product])
async def list_products(request: Request, after: DocumentId = FIRST) -> list[Document]:
    """One page. To get the next, send the last product's id as `after`."""
    products: Products = request.state.products
    wanted = {"_id": {"$gt": ObjectId(after)}}
    return await products.find(wanted).sort("_id").limit(PAGE).to_list()


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    if not os.environ.get("MONGODB_URL"):
        raise SystemExit(NO_URL)
    new = {"sku": os.urandom(8).hex(), "name": "Green tea"}
    with TestClient(app) as client:
        created, again = (client.post("/products", json=new) for _ in range(2))
        found = client.get(f"/products/{created.json()['id']}")
        print(created.status_code, again.status_code, found.json() == created.json())
        # > 201 409 True


if __name__ == "__main__":
    main()
