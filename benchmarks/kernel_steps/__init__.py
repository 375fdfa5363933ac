"""What each step of the CPU kernels' tuning was worth, measured side by side: ``python -m benchmarks.kernel_steps``."""
