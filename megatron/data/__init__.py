"""Token files, samples, blends and loaders. Only `megatron.data.loader` imports torch."""
