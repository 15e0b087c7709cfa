"""Makes what the shop serves from: the vectors of all books, and the SQLite store with prices and stock.

In: `books.csv` (id, title, author, year, description). Out: `vectors.npz` and `shop.sqlite` in `--into`, this folder if
not said; what is there already is replaced. Exits with 1 and the reason when the table or the model is not there.
"""

import argparse
import csv
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import minilm
import numpy as np

HERE = Path(__file__).parent
AT_ONCE = 32
COLUMNS = ["id", "title", "author", "year", "description"]
SCHEMA = """
CREATE TABLE books (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, author TEXT NOT NULL, year INTEGER NOT NULL, description TEXT NOT NULL,
    price_cents INTEGER NOT NULL, copies INTEGER NOT NULL, listed INTEGER NOT NULL
)
"""


def read_books(path):
    """The rows of the table as dicts. ValueError when it has other columns."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}; {COLUMNS} are needed")
        return list(reader)


def embed(books, model):
    """A row for each book: what a query is compared with."""
    texts = [f"{book['title']} by {book['author']}. {book['description']}" for book in books]
    rows = []
    for start in range(0, len(texts), AT_ONCE):
        rows.append(model.embed(texts[start : start + AT_ONCE]))
        print(f"\rembedded {min(start + AT_ONCE, len(texts))} of {len(texts)} books", end="", flush=True)
    print()
    return np.concatenate(rows)


def invented_stock(books):
    """A price, a number of copies and whether it is listed, for each book: made up, and the same at each run."""
    chance = random.Random(0)
    for _ in books:
        copies = chance.choice([0, 1, 1, 1, 2, 2, 3, 4, 6, 8])
        yield chance.randrange(350, 3000, 50), copies, chance.random() > 0.03


def write_store(path, books):
    stock = invented_stock(books)
    rows = [[*(book[name] for name in COLUMNS), *each] for book, each in zip(books, stock, strict=True)]
    with closing(sqlite3.connect(path)) as store, store:
        store.execute(SCHEMA)
        store.executemany("INSERT INTO books VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def prepare(table, into):
    books = read_books(table)
    vectors = embed(books, minilm.MiniLM(minilm.folder()))
    new = into / "new.npz"
    np.savez(new, ids=np.array([int(book["id"]) for book in books]), vectors=vectors)
    new.replace(into / "vectors.npz")  # whole or not at all
    new = into / "new.sqlite"
    new.unlink(missing_ok=True)
    write_store(new, books)
    new.replace(into / "shop.sqlite")
    print(f"wrote vectors.npz and shop.sqlite into {into}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, default=HERE / "books.csv", help="the table (default: books.csv)")
    parser.add_argument("--into", type=Path, default=HERE, help="the folder for what is made (default: this one)")
    options = parser.parse_args()
    try:
        prepare(options.books, options.into)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"prepare.py: {error}")


if __name__ == "__main__":
    main()
