"""Measurements of Backchannel beside its peers; see README.md in this folder."""
