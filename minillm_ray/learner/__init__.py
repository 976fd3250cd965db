"""The student's optimizer steps."""
