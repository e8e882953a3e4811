"""One module per command: its arguments, and what it prints and writes. `main` returns the exit code."""
