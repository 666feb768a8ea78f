"""Assign addresses to a pod: from the request of its ADD to an attachment that is on file."""
