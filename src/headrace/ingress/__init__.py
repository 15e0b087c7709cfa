"""The process that clients reach."""
