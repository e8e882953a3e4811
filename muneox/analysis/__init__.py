"""Analysis of families of runs: best learning rates, training curves by width, and transfer to a target."""
