"""Exported checkpoints, opened and run without PyTorch's models."""
