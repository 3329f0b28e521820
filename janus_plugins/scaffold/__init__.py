"""Start a plugin package of one's own: `janus-plugins new`."""
