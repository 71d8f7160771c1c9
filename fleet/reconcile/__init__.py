"""Compares what arrived with what the hosts say they sent: what is missing, what came twice, and why."""
