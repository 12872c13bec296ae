"""The model: what is loaded, encoded, scored and sampled, and how much memory that takes."""
