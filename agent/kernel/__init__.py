"""Use mechanisms of the Linux kernel. Nothing here knows a type of testcni."""
