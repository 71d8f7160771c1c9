"""The pipe between the master and a worker: frames, messages, channels and the pacing that both ends use."""
