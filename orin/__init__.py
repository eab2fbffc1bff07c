"""The SoC as a whole: boards, pipeline, LoadGen, records, and the command line."""
