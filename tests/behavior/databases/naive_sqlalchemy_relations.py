"""Fails at random with `gather` on one session, shows the wrong author, and sends one
more statement for each comment when it loads comments in a loop."""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from sqlalchemy import ForeignKey, make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncAttrs,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(AsyncAttrs, DeclarativeBase): ...


class Author(Base):
    __tablename__ = "blog_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Post(Base):
    __tablename__ = "blog_posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    title: Mapped[str]


class Comment(Base):
    __tablename__ = "blog_comments"
    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id))
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship()
    text: Mapped[str]


async def get_db():
    async with SessionLocal() as session:
        yield session


@asynccontextmanager
async def create_tables(app: FastAPI):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=create_tables)


@app.get("/posts/{post_id}")
async def get_post(post_id: int, db: AsyncSession = Depends(get_db)):
    post, comments, author = await asyncio.gather(
        db.get(Post, post_id),
        db.execute(select(Comment).where(Comment.post_id == post_id)),
        db.execute(select(Author).where(Author.id == Post.author_id)),
    )
    return {
        "post": post,
        "comments": comments.scalars().all(),
        "author": author.scalar_one(),
    }


@app.get("/posts/{post_id}/comments")
async def get_comments(post_id: int, db: AsyncSession = Depends(get_db)):
    comments = await db.scalars(select(Comment).where(Comment.post_id == post_id))
    return [
        {"text": comment.text, "author": (await comment.awaitable_attrs.author).name}
        for comment in comments
    ]
