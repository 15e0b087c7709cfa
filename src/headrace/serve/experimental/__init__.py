"""Modules that Ray Serve has under this name; what is in them is in `headrace.serve.request_router` too."""
