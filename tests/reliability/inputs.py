"""To be filled."""

TESTS = []
