"""What every case is timed with: inputs, their float64 reference, the gate, the clock, bandwidths, the report."""
