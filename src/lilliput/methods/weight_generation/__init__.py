"""Circuits that compute integer weights from a few stored ones, and what they really cost."""
