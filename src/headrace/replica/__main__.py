"""`python -m headrace.replica`: a worker."""

from headrace import process

process.run("headrace.replica.main")
