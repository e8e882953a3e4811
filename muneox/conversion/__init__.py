"""Convert between checkpoints and models of Hugging Face's transformers, one tensor at a time."""
