"""A plugin for tests: needs a module that is not there."""

import janus_test_no_such_module
