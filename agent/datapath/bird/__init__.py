"""BIRD 2, stock: its configuration rendered, its daemon supervised, its control socket spoken to."""
