"""Many boards as one: workers on Dask distributed, one a board, and what runs on them."""
