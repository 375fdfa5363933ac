"""Find, certify and draw low-loss paths between neural networks."""
