"""Addresses of a cluster: which are the same."""

from __future__ import annotations

import pytest

from headrace.engine.ray.cluster import same_address


@pytest.mark.parametrize("given", ["10.0.0.7:6379", "127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_the_node_itself_has_several(given: str) -> None:
    """Ray knows the cluster by the node's address, whatever name of it the user gave."""
    assert same_address(given, "10.0.0.7:6379", own_host="10.0.0.7")


@pytest.mark.parametrize("given", ["10.0.0.8:6379", "10.0.0.7:6380", "no-such-host.invalid:6379", "127.0.0.1:6380"])
def test_another_host_or_port_is_another_cluster(given: str) -> None:
    assert not same_address(given, "10.0.0.7:6379", own_host="10.0.0.7")
