"""`python -m headrace.ingress`: an ingress."""

from headrace import process

process.run("headrace.ingress.main")
