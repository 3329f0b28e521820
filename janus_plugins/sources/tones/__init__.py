"""Tones that are made: a note's name, and its sound."""
