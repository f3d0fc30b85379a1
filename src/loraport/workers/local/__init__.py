"""The workers of this machine: a process each, and the command that starts them and listens."""
