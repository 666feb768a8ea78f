"""Read JSON and YAML of others strictly, with one error type for all faults."""
