"""What each step of the CPU kernels' tuning was worth, side by side: ``python -m benchmarks.studies.kernel_steps``."""
