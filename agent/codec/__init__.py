"""Read JSON and YAML that others wrote, strictly, with one error type for all faults."""
