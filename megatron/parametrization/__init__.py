"""From widths and declared roles to base shapes, initial weights, parameter groups, and the audit of all three."""
