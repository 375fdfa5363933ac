"""Curves to compare LLPF with: Bezier, polychain, AutoNEB, straight lines with and without alignment."""
