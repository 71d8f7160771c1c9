"""What a process may do: its user, its capabilities, its system calls."""
