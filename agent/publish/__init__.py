"""Events, status objects and accepted modes that the agent writes to the cluster, in threads of their own.

No pod waits for any of them, and none of them changes what is programmed.
"""
