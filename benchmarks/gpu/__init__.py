"""The stages of gpu_check.py. They need torch and this repository, nothing that has to be installed."""
