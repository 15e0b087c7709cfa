"""Gradio (Ray Serve's), which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class

GradioIngress = unsupported_class(
    "gradio_integrations", "GradioIngress", "mount the Gradio application in an ASGI one, and serve that"
)
GradioServer = unsupported_class(
    "gradio_integrations", "GradioServer", "mount the Gradio application in an ASGI one, and serve that"
)

__all__ = ["GradioIngress", "GradioServer"]
