"""Adapters of task queues (Ray Serve's), which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

CeleryTaskProcessorAdapter = unsupported_class("task_processor", "CeleryTaskProcessorAdapter")

__all__ = ["CeleryTaskProcessorAdapter"]
