"""Measurements of this code, each with a table in data/results."""
