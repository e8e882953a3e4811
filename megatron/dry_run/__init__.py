"""`--dry-run`: what a layout would need, from the description of the model alone: no weights, no processes, no GPU."""
