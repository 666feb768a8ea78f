"""Frozen values that all parts share. Nothing here does anything."""
