"""A text task that needs generalising: put numbers written as words in order."""
