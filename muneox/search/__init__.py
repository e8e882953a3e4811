"""Hyperparameter search on a muP proxy: space, samplers, shared study, warm workers, outcome."""
