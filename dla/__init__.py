"""What the DLA can run: restrictions, placement, rewrites, scales, input and output formats."""
