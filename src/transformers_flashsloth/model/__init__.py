"""The model: what travels with the weights, and nothing else."""
