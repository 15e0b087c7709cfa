"""A second-hand bookshop's search: `headrace run search:app --app-dir examples/search` (prepare.py first).

In: GET /search?q=...&limit=...&max_price=...&in_stock=... Out: JSON, the books nearest in meaning that the shop sells,
best first; status 422 for a query that makes no sense. A request's way through the deployments:

    Search (FastAPI) -> Embedder (the model, in batches) -> Index (nearest vectors) -> Ranker -> Catalog (SQLite)
"""

import sqlite3
from pathlib import Path
from typing import Annotated

import minilm
import numpy as np
from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from headrace import serve

HERE = Path(__file__).parent
CANDIDATES = 60  # so many of the nearest are looked at: the shop may not sell some of them
MOST_BOOKS = 20
SOLD_OUT = 0.15  # how much less similar a book counts as of which there is no copy


def needed(path):
    """The path, if there is such a file. FileNotFoundError that says how to make it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is not there: run examples/search/prepare.py first")
    return path


@serve.deployment(num_cpus=1)
class Embedder:
    """Texts to vectors. While the model works on one batch, the queries that come gather for the next."""

    def __init__(self):
        self.model = minilm.MiniLM(minilm.folder())
        self.texts = self.batches = 0

    @serve.batch(max_batch_size=32)
    def embed(self, texts):
        self.batches += 1
        self.texts += len(texts)
        return list(self.model.embed(texts))

    async def counts(self):
        return {"texts": self.texts, "batches": self.batches}


@serve.deployment
class Index:
    """Exact nearest neighbours: so few vectors are compared with a query in less time than it takes to get here."""

    def __init__(self, path):
        with np.load(needed(path)) as saved:
            self.ids, self.vectors = saved["ids"], saved["vectors"]

    def nearest(self, vector, count):
        """The ids of the `count` most similar books and their similarities (cosines), the most similar first."""
        similarities = self.vectors @ vector
        best = np.argsort(-similarities, kind="stable")[:count]
        return list(zip(self.ids[best].tolist(), similarities[best].tolist(), strict=True))


@serve.deployment
class Catalog:
    """What the shop knows of its books, read at each request: a book sold a moment ago is sold."""

    def __init__(self, path):
        # The threads of the replica share it, which is allowed for reading.
        self.store = sqlite3.connect(f"file:{needed(path)}?mode=ro", uri=True, check_same_thread=False)
        self.store.execute("SELECT count(*) FROM books").fetchone()  # another file, or a broken one, fails the start

    def offers(self, ids, max_price=None, in_stock=False):
        """The listed ones of the books, by id, in one read: no dearer than `max_price`, with a copy if `in_stock`."""
        query = f"""
            SELECT id, title, author, year, description, price_cents / 100.0 AS price, copies FROM books
            WHERE id IN ({", ".join("?" * len(ids))}) AND listed
              AND (? IS NULL OR price_cents <= ? * 100) AND (copies > 0 OR NOT ?)
        """
        cursor = self.store.execute(query, [*ids, max_price, max_price, in_stock])
        names = [column[0] for column in cursor.description]
        return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


def ranked(hits, offers, limit):
    """The offers among the hits, best first: by similarity, of which a book that is sold out has SOLD_OUT less."""
    found = [offers[book] | {"similarity": round(similarity, 4)} for book, similarity in hits if book in offers]
    found.sort(key=lambda book: book["similarity"] - SOLD_OUT * (book["copies"] == 0), reverse=True)
    return found[:limit]


@serve.deployment
class Ranker:
    """From the nearest texts to what is shown: the shop has a say in it."""

    def __init__(self, catalog):
        self.catalog = catalog

    async def rank(self, hits, limit, max_price, in_stock):
        offers = await self.catalog.offers.remote([book for book, _ in hits], max_price, in_stock)
        return ranked(hits, offers, limit)


class Book(BaseModel):
    id: int
    title: str
    author: str
    year: int
    description: str
    price: float
    copies: int = Field(description="how many are in stock; 0: sold out")
    similarity: float = Field(description="of the description and the query: 1 for the same meaning")


class Answer(BaseModel):
    query: str
    books: list[Book]


api = FastAPI(title="Bookshop search")


@serve.deployment
@serve.ingress(api)
class Search:
    def __init__(self, embedder, index, ranker):
        self.embedder = embedder
        self.index = index
        self.ranker = ranker

    @api.get("/search")
    async def search(
        self,
        q: Annotated[str, Query(pattern=r"\S", max_length=1000, description="what the book should be about")],
        limit: Annotated[int, Query(ge=1, le=MOST_BOOKS)] = 5,
        max_price: Annotated[float | None, Query(gt=0)] = None,
        in_stock: bool = False,
    ) -> Answer:
        # A response is handed on as it is: each step starts when the one before has ended, and nothing waits here.
        vector = self.embedder.embed.remote(q)
        hits = self.index.nearest.remote(vector, CANDIDATES)
        books = await self.ranker.rank.remote(hits, limit, max_price, in_stock)
        return Answer(query=q, books=books)

    @api.get("/counts")
    async def counts(self) -> dict[str, int]:
        """How many texts the model has embedded, in how many batches."""
        return await self.embedder.counts.remote()


class Arguments(BaseModel):
    """`headrace run search:build folder=...`: where prepare.py has put what it made."""

    folder: Path = HERE


def build(arguments: Arguments):
    index = Index.bind(str(arguments.folder / "vectors.npz"))
    catalog = Catalog.bind(str(arguments.folder / "shop.sqlite"))
    return Search.bind(Embedder.bind(), index, Ranker.bind(catalog))


app = build(Arguments())
