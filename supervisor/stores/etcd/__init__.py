"""The etcd store: one session at a time on one endpoint, from which everything that concerns this host is kept.

Nothing here is imported unless ``[store] backend = "etcd"``: gRPC and its stubs cost 26 MB. The modules `results`,
`errors`, `endpoints`, `lifecycle`, `history` and `mirror` do without them.
"""
