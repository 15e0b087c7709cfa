"""Gang scheduling (Ray Serve's), which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

GangContext = unsupported_class("gang", "GangContext", "replicas start one by one")

__all__ = ["GangContext"]
