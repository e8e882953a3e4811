"""One module per command, with its arguments and output. `main` returns the exit code."""
