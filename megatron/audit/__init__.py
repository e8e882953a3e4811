"""The static audit of a configured model: expected values from its keys, measured values from the running model."""
