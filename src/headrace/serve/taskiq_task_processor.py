"""Adapters of task queues (Ray Serve's), which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

TaskiqAdapterConfig = unsupported_class("taskiq_task_processor", "TaskiqAdapterConfig")
TaskiqTaskProcessorAdapter = unsupported_class("taskiq_task_processor", "TaskiqTaskProcessorAdapter")

__all__ = ["TaskiqAdapterConfig", "TaskiqTaskProcessorAdapter"]
