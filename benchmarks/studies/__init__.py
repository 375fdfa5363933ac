"""The committed results of the analyses: one module a topic, each also a command."""
