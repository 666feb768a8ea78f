"""The modes with a subinterface of a parent: macvlan and ipvlan."""
