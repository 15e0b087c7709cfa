"""The engine of a Ray cluster: Ray places, isolates and restarts actors, each of which keeps processes on its node.

The package `ray` is imported here alone, and only by what runs on a cluster.
"""
