"""The master: lifecycle, nursery, cgroups, breaker, desired state, stores, sinks, local control."""
