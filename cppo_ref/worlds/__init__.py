"""Synthetic worlds that know the truth about every token, and the pretraining of their tiny VLMs."""
