"""The process that decides: compares what should be with what is, acts through the engine, publishes snapshots."""
