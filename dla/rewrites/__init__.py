"""The rewrites one by one: each takes an `Edit` and a node, and brings that node into a form that the DLA takes."""
