"""What the paths mean: barriers, layer-wise connectivity, connectors, widths, curves, sharpness, pictures' numbers."""
