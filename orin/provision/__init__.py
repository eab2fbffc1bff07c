"""From a freshly flashed board to one that this toolkit runs on, over ssh or on the board itself."""
