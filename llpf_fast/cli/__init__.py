"""The ``llpf`` command. Nothing here imports torch before a command runs: ``llpf --help`` answers at once."""
