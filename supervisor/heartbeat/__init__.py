"""What the agent says at regular intervals: how it and each worker are, and what became of their events."""
