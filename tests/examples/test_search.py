"""The search example: the model against its reference, and the shop as a customer meets it, over HTTP."""

from __future__ import annotations

import csv
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bench.instance import Instance, free_port, on_ray
from headrace import serve
from headrace.serve.exceptions import DeployFailedError
from headrace.serve.testing import LocalTesting

SEARCH = Path(__file__).parents[2] / "examples" / "search"
sys.path.insert(0, str(SEARCH))  # as `--app-dir` does
minilm: Any = importlib.import_module("minilm")
search: Any = importlib.import_module("search")

# All that the tests ask for, and as many more of every kind as make it a choice.
WANTED = {
    "Frankenstein",
    "Dracula",
    "Carmilla",
    "Moby-Dick",
    "Three Men in a Boat",
    "All Quiet on the Western Front",
    "Chess Fundamentals",
    "The Wealth of Nations",
    "The Machine Stops",
    "The Lost World",
}
EVERY = 9


@dataclass(frozen=True)
class Shop:
    """The example as it runs: its port, what it was prepared with, and what its terminal shows."""

    port: int
    folder: Path

    def ask(self, q: str, **parameters: object) -> list[dict[str, Any]]:
        response = httpx.get(f"http://127.0.0.1:{self.port}/search", params={"q": q, **parameters}, timeout=60)
        assert response.status_code == 200, response.text
        assert response.json()["query"] == q
        return list(response.json()["books"])

    def titles(self, q: str, **parameters: object) -> list[str]:
        return [book["title"] for book in self.ask(q, **parameters)]

    def stock(self, title: str, **columns: int) -> None:
        """Change the store as another program of the shop would."""
        with closing(sqlite3.connect(self.folder / "shop.sqlite")) as store, store:
            for name, value in columns.items():
                store.execute(f"UPDATE books SET {name} = ? WHERE title = ?", [value, title])


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SEARCH / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that prepare.py made of a part of the books, each with two copies for ten euros."""
    folder = tmp_path_factory.mktemp("search")
    with open(SEARCH / "books.csv", newline="", encoding="utf-8") as file:
        books = list(csv.DictReader(file))
    assert {book["title"] for book in books} >= WANTED
    with open(folder / "books.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(books[0]))
        writer.writeheader()
        writer.writerows(book for book in books if book["title"] in WANTED or int(book["id"]) % EVERY == 0)
    done = prepare("--books", folder / "books.csv", "--into", folder)
    assert done.returncode == 0, done.stderr
    assert "embedded" in done.stdout
    with closing(sqlite3.connect(folder / "shop.sqlite")) as store, store:
        store.execute("UPDATE books SET price_cents = 1000, copies = 2, listed = 1")
    return folder


@pytest.fixture(scope="module")
def shop(prepared: Path) -> Iterator[Shop]:
    if on_ray():  # there the command ends when it has deployed
        instance = Instance(prepared / "h", "search:build", SEARCH)
        instance.command.insert(instance.command.index("search:build") + 1, f"folder={prepared}")
        with instance:
            yield Shop(instance.ready().port, prepared)
        return
    shop = Shop(free_port(), prepared)
    log = prepared / "terminal.txt"
    command = [
        *(sys.executable, "-m", "headrace.cli", "run", "search:build", f"folder={prepared}"),
        *("--app-dir", str(SEARCH), "--port", str(shop.port)),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, "HEADRACE_HOME": str(prepared / "h")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + 110
    while "ready in" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    yield shop
    server.send_signal(signal.SIGINT)
    server.wait(40)
    assert "stopped" in log.read_text()


@pytest.fixture(scope="module")
def model() -> Any:
    return minilm.MiniLM(minilm.folder())


# ---- the model

# The components 0, 1, 2, 3, 200 and 383 of what sentence-transformers 6.2.0 makes of the text with the same weights
# (torch 2.13.0, CPU): accents, other scripts, nothing at all, and more than the model takes are among them.
REFERENCE = {
    "A whale.": [-0.02043, 0.07165, 0.02539, 0.09291, 0.05393, 0.1087],
    "She sells sea shells by the sea shore.": [0.03033, 0.05598, 0.03323, -0.01104, 0.06638, 0.07654],
    "Der Zauberberg, naïve façade — 東京 🐳": [0.04021, 0.12527, 0.08314, -0.03014, 0.10311, 0.02844],
    "": [-0.11884, 0.0483, -0.00255, -0.01101, 0.03772, -0.01572],
    "word " * 400: [-0.00812, -0.09559, -0.03867, 0.04966, -0.03901, 0.01524],
}


def test_vectors_are_those_of_the_reference(model: Any) -> None:
    vectors = model.embed(list(REFERENCE))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, [0, 1, 2, 3, 200, 383]], list(REFERENCE.values()), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_text_has_the_same_vector_alone_and_in_any_company(model: Any) -> None:
    texts = [text for text in REFERENCE if len(text) < 100]
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(model.embed(texts), alone, atol=1e-5)
    np.testing.assert_allclose(model.embed(texts[::-1])[::-1], alone, atol=1e-5)
    assert model.embed([]).shape == (0, 384)


# ---- the deployments, in this process


class Held:
    """A model that begins a batch when it is let."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.begun, self.go = threading.Event(), threading.Event()

    def embed(self, texts: list[str]) -> Any:
        self.begun.set()
        assert self.go.wait(60)
        return self.model.embed(texts)


def test_queries_that_come_while_the_model_works_share_a_batch(headrace_local: LocalTesting, model: Any) -> None:
    held = Held(model)

    class HeldEmbedder(search.Embedder.func_or_class):  # type: ignore[misc]
        def __init__(self) -> None:
            self.model, self.texts, self.batches = held, 0, 0

    embedder = headrace_local.run(serve.deployment(HeldEmbedder).bind(), route_prefix=None)
    texts = [f"a book about {subject}" for subject in ("the sea", "love", "war", "gardens", "ghosts")]
    first = embedder.embed.remote(texts[0])
    assert held.begun.wait(60)
    rest = [embedder.embed.remote(text) for text in texts[1:]]
    embedder.counts.remote().result()  # calls arrive in order: when this one has been answered, those before are there
    held.go.set()
    vectors = np.stack([first.result(), *(response.result() for response in rest)])
    np.testing.assert_allclose(vectors, model.embed(texts), atol=1e-5)
    assert embedder.counts.remote().result() == {"texts": 5, "batches": 2}


def test_what_was_not_prepared_fails_the_deploy_and_says_what_to_do(
    headrace_local: LocalTesting, tmp_path: Path
) -> None:
    path = tmp_path / "shop.sqlite"
    with pytest.raises(DeployFailedError, match=r"shop\.sqlite is not there: run .*prepare\.py"):
        headrace_local.run(search.Catalog.bind(str(path)), route_prefix=None)
    with pytest.raises(FileNotFoundError, match=r"vectors\.npz is not there: run .*prepare\.py"):
        search.Index.func_or_class(str(tmp_path / "vectors.npz"))
    path.write_text("price;title\n" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        search.Catalog.func_or_class(str(path))


def test_the_nearest_come_first_and_only_as_many_as_asked_for(prepared: Path) -> None:
    index = search.Index.func_or_class(str(prepared / "vectors.npz"))
    for place in (0, len(index.ids) - 1):
        hits = index.nearest(index.vectors[place], 3)
        assert hits[0] == (index.ids[place], pytest.approx(1, abs=1e-5))
        assert len(hits) == 3
        assert hits == sorted(hits, key=lambda hit: -hit[1])
    assert len(index.nearest(index.vectors[0], 10_000)) == len(index.ids)


def test_the_ranker_puts_sold_out_books_lower_and_drops_what_is_not_offered() -> None:
    offers = {1: {"copies": 0}, 2: {"copies": 1}, 3: {"copies": 1}}
    hits = [(9, 0.9), (1, 0.6), (2, 0.5), (3, 0.3)]
    shown = search.ranked(hits, offers, 5)
    assert [book["similarity"] for book in shown] == [0.5, 0.6, 0.3]
    assert search.ranked(hits, offers, 1) == [{"copies": 1, "similarity": 0.5}]
    assert search.ranked(hits, {}, 5) == []


# ---- as customers meet it


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("a scientist makes a monster", "Frankenstein"),
        ("hunting a whale", "Moby-Dick"),
        ("life in the trenches", "All Quiet on the Western Front"),
        ("learning to play a board game", "Chess Fundamentals"),
        ("why are some countries rich", "The Wealth of Nations"),
        ("machines take over", "The Machine Stops"),
        ("dinosaurs", "The Lost World"),
        ("something funny about a boat trip", "Three Men in a Boat"),
    ],
)
def test_a_query_finds_the_book_that_is_meant_though_it_has_other_words(shop: Shop, query: str, title: str) -> None:
    assert shop.titles(query, limit=1) == [title]


def test_limits_hold_and_every_book_comes_with_what_a_customer_wants_to_know(shop: Shop) -> None:
    books = shop.ask("a love story", limit=20)
    assert len(books) == 20
    assert len({book["id"] for book in books}) == 20
    similarities = [book["similarity"] for book in books]
    assert similarities == sorted(similarities, reverse=True)
    assert books[0].keys() == {"id", "title", "author", "year", "description", "price", "copies", "similarity"}
    assert (books[0]["price"], books[0]["copies"]) == (10, 2)


def test_the_store_has_its_say_from_one_request_to_the_next(shop: Shop) -> None:
    vampires = ["Dracula", "Carmilla"]
    assert shop.titles("vampires", limit=2) == vampires
    shop.stock("Dracula", copies=0)
    assert shop.titles("vampires", limit=2) == vampires[::-1]
    assert "Dracula" not in shop.titles("vampires", limit=20, in_stock=True)
    shop.stock("Carmilla", price_cents=1001)
    assert not {*vampires} & {*shop.titles("vampires", limit=20, in_stock=True, max_price=10)}
    assert "Carmilla" in shop.titles("vampires", limit=2, max_price=10.01)
    shop.stock("Carmilla", listed=0)
    assert "Carmilla" not in shop.titles("vampires", limit=20)
    for title in vampires:
        shop.stock(title, copies=2, price_cents=1000, listed=1)
    assert shop.titles("vampires", limit=2) == vampires


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ("", "q"),
        ("q=", "q"),
        ("q=+%09", "q"),
        ("q=" + "x" * 1001, "q"),
        ("q=sea&limit=0", "limit"),
        ("q=sea&limit=21", "limit"),
        ("q=sea&limit=some", "limit"),
        ("q=sea&max_price=-1", "max_price"),
        ("q=sea&max_price=nan", "max_price"),
        ("q=sea&in_stock=perhaps", "in_stock"),
    ],
)
def test_a_query_that_makes_no_sense_is_a_422_that_names_the_parameter(shop: Shop, parameters: str, wrong: str) -> None:
    response = httpx.get(f"http://127.0.0.1:{shop.port}/search?{parameters}", timeout=60)
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["detail"]] == [["query", wrong]]


@pytest.mark.parametrize("query", ["%00", "%ED%A0%80", "%FF", "'; DROP TABLE books; --", "🐳" * 1000, "x" * 1000])
def test_any_other_text_is_a_query(shop: Shop, query: str) -> None:
    response = httpx.get(f"http://127.0.0.1:{shop.port}/search?q={query}", timeout=60)
    assert response.status_code == 200
    assert len(response.json()["books"]) == 5


# ---- prepare.py


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "No such file"), ("title,price\nA book,3\n", "has the columns ['title', 'price']")]
)
def test_preparing_without_a_table_of_books_says_why(tmp_path: Path, text: str | None, reason: str) -> None:
    table = tmp_path / "books.csv"
    if text is not None:
        table.write_text(text)
    done = prepare("--books", table, "--into", tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
