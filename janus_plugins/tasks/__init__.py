"""Evaluation tasks that ship with janus-plugins, one folder each."""
