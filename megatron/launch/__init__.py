"""Starts the processes of a run, on this host or on several, and ends with them. Imports no torch by itself."""

from megatron.launch.start import launch_configured

__all__ = ["launch_configured"]
