"""To be filled."""
TESTS = []
