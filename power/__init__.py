"""Power: tegrastats, rails and modes of each board, energy over a window. Knows no networks."""
