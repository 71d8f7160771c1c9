"""The spool: events on disk while the sink cannot take them, or until it has."""
