"""`--dry-run`: estimate the resources of a layout from the model's description, without weights, processes or GPU."""
