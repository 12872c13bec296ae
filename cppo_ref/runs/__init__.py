"""The run folder: checkpoints, metrics, logs."""
