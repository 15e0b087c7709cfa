"""Engines place processes (start, watch, stop); they never carry requests."""
