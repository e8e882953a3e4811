"""Tools around the trainer: search, sweeps, analysis of runs, loss prediction, and the report."""
