"""Volumes larger than a network's input: windows cut, predicted and merged, and what comes before and after."""
