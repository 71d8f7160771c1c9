"""Sinks: where events leave the host."""
