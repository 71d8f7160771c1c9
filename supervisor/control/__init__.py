"""Control on the host: the protocol of the control socket, its server in the master and its client."""
