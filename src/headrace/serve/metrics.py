"""Metrics of user code, which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

Counter = unsupported_class("metrics", "Counter", "use the library that your monitoring has for Python")
Gauge = unsupported_class("metrics", "Gauge", "use the library that your monitoring has for Python")
Histogram = unsupported_class("metrics", "Histogram", "use the library that your monitoring has for Python")

__all__ = ["Counter", "Gauge", "Histogram"]
