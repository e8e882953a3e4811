"""What a family of runs shows: best learning rates, curves over the width, and what transfers to a target."""
