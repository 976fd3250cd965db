"""Scoring with the teacher."""
