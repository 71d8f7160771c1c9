"""Judging what is used against what is allowed. Pure: samples in, decisions out; no clock, no file, no signal."""
