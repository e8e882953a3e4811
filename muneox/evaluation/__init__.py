"""Evaluate a checkpoint: perplexity of the validation data, and tasks of the lm-evaluation-harness."""
