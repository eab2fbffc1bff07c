"""Commands: parse, wire, print."""
