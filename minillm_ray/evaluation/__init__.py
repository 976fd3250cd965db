"""How good a student is, measured on text and against the teacher."""
