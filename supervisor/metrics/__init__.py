"""The agent's metrics for Prometheus: what there is, how it is collected, and the two ways out."""
