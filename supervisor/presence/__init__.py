"""What others see of this agent in etcd: its lease, its registration, its status. Nothing here decides anything."""
