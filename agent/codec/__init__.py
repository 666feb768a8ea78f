"""Read what others wrote: JSON and YAML, strictly, with one error for all that can be wrong."""
