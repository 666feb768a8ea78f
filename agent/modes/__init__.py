"""The modes: how pods of a network are connected, and how packets reach pods of other nodes."""
