"""Synthetic worlds that know the truth about every token."""
