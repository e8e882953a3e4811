"""muP (the package mup) for a GPT under any layout: global names, padded and sharded weights, files per rank."""
