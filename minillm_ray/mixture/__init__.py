"""Sampling from alpha p + (1 - alpha) q, token by token, with the two models in engines of their own."""
