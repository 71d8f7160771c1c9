"""One supervised worker: its process, its pipes, and the loop that keeps it as it is wanted."""
