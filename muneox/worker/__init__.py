"""The script that a launcher starts in every process of a run."""
