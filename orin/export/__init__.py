"""Ways out of the toolkit: the same engines for trtexec and for Triton, a submission tree for MLPerf."""
