"""Scaling laws: ladders of runs, fits, and forecasts with intervals."""
