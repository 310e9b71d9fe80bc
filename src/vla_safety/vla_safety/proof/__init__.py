"""What shows that the filter keeps its promises: an independent oracle, a rig, and sources that want it to fail.

Tests and `./vla campaign safety` share these modules; no node imports them.
"""
