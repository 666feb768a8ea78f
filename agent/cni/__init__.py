"""The pod path: requests of the plugin, from the socket to the answer."""
