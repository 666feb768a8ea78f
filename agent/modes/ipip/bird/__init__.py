"""BIRD 2: render its configuration, supervise its process, and talk to its control socket."""
