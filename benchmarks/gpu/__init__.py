"""The stages of run.sh. They need torch and this repository, nothing that has to be installed."""
