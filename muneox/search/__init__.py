"""Hyperparameter search on a muP proxy: search space, samplers, shared study, warm workers and outcome."""
