"""Hyperparameter search on a muP proxy: space, plan, shared study, warm workers, report. Entry: tools/mup/search.py."""
