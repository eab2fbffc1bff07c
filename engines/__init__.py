"""Networks and their graphs, the zoo, and building and running engines; plain values in, engines out."""
