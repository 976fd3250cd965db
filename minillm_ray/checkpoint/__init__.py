"""A run's state on disk: whole or not there, and checked before it is used."""
