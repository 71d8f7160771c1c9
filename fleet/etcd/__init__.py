"""What operations do on the etcd cluster itself: certificates, users and roles, and looking at the fleet."""
