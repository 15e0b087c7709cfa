"""The control API over HTTP: a process of its own, which drives the controller over its private socket."""
