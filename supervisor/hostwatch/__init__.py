"""The whole agent against its host: what all of it uses together, and what the host has left."""
