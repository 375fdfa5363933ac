"""Radial widths of low-loss regions, and what they depend on."""
