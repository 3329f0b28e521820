"""Training callbacks that ship with janus-plugins, one folder each."""
