"""The id that POST returns is not found, a document found by its ObjectId cannot be sent
(500), the client may choose `_id` and any field, the same `_id` twice is a 500, and a
server that is down keeps each request for 30 seconds."""

import os

from bson import ObjectId
from fastapi import FastAPI, HTTPException
from motor.motor_asyncio import AsyncIOMotorClient

client = AsyncIOMotorClient(os.environ["MONGODB_URL"])
db = client.get_default_database()
app = FastAPI()


@app.post("/products", status_code=201)
async def create_product(data: dict):
    result = await db.products.insert_one(data)
    return {"id": str(result.inserted_id)}


@app.get("/products/{product_id}")
async def get_product(product_id: str):
    document = await db.products.find_one({"_id": product_id})
    if not document:
        raise HTTPException(404, "No such product")
    return document


@app.get("/products/by-object-id/{product_id}")
async def get_product_by_object_id(product_id: str):
    return await db.products.find_one({"_id": ObjectId(product_id)})
