"""A Ray cluster of two nodes on this machine, each with an address of its own; there until standard input ends.

Out: a line with the cluster's address. What either node alone can hold has its name: `first`, `second`.
"""

import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 300 * 1024 * 1024


def main():
    cluster = Cluster()
    for number, name in enumerate(("first", "second"), start=1):
        cluster.add_node(
            node_ip_address=f"127.0.6.{number}",  # 127.0.0.1 is any machine to Ray
            num_cpus=16,  # as far as Ray is concerned: all have room, whatever the machine has
            resources={name: 1000},
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
        )
    print(f"CLUSTER {cluster.address}", flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
