"""Changing a machine in steps: scripts, what they need, what proves them, and how each is undone."""
