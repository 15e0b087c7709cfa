"""Bytes between processes: frames, messages, payloads, shared memory, connections."""
