"""Flashing an AGX Orin developer kit from a Linux host, with NVIDIA's own tools."""
