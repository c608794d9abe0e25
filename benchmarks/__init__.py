"""Measurements of our own code and of its peers; a checkout of the repository is needed."""

import tools.before_torch  # noqa: F401 - before any of them loads torch
