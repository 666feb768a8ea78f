"""The cluster's objects: read them from the API server or a folder as snapshots, and write them."""
