"""Sharpness along a path, and what averages and ensembles of its waypoints are worth."""
