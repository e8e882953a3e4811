"""muP (the package mup) for a GPT under any layout: global names, padded and sharded weights, one file per rank."""
