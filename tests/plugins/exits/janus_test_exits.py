"""A plugin for tests: calls sys.exit() at import."""

import sys

sys.exit("this plugin ends the program")
