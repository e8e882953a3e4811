"""What a launcher starts in every process of a run."""
