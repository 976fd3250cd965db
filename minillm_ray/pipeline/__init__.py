"""The order of work between roles; it holds references only."""
