"""The worker runtime and the detection workers. What a worker imports is in every worker's memory."""
