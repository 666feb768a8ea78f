"""Objects that the agent writes for others to read, in threads of their own.

No pod waits for any of them, and none of them changes what is programmed.
"""
