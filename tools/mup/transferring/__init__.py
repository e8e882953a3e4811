"""What carries over from a proxy to its target. Entry: tools/mup/transfer.py."""
