"""testcni's agent, and the version of all parts: package, plugin, image and metrics take it from here."""

__version__ = "0.1.0"
