"""The node path: read, desire, apply and publish, in rounds. It does not touch the inside of a pod."""
