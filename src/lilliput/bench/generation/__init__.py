"""Experiments in generating weights: grids of runs, their folders, and what is read out of them again."""
