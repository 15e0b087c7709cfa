"""For `from headrace.serve.experimental.capacity_queue_router import CapacityQueueRouter`."""

from headrace.serve.unsupported import unsupported_class

CapacityQueueRouter = unsupported_class(
    "experimental.capacity_queue_router",
    "CapacityQueueRouter",
    "without any router max_ongoing_requests holds over all callers, and a free slot goes to who waits longest",
)

__all__ = ["CapacityQueueRouter"]
