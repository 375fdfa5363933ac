"""What the kernels are compared with: readable, without anything that a user of plain torch would not do, and fair."""
