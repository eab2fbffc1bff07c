"""CT volumes on a board: the cases, what labels them, LoadGen over cases of unequal size, what they cost."""
