"""Measures Headrace beside its peers: the same workload, one server at a time, interleaved rounds, medians and ratios.

`python -m bench` from the root of the repository (or `make bench`); `--help` says what can be left out.
"""
