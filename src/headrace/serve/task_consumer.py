"""Consumers of task queues (Ray Serve's), which do not work yet: they can be imported, and say so when used."""

from headrace.serve.unsupported import unsupported_function

instantiate_adapter_from_config = unsupported_function("task_consumer", "instantiate_adapter_from_config")
task_consumer = unsupported_function("task_consumer", "task_consumer")
task_handler = unsupported_function("task_consumer", "task_handler")

__all__ = ["instantiate_adapter_from_config", "task_consumer", "task_handler"]
