"""Composition: which roles a phase needs, and what it leaves behind."""
