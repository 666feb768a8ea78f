"""Building blocks of a long-running process. Nothing here knows a type of testcni."""
