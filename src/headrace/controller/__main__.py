"""`python -m headrace.controller`: the controller's process, started by the keeper."""

from headrace import process

process.run("headrace.controller.main")
