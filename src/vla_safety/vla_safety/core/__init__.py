"""The filter without ROS.

Three nouns, one verb: a *Motion* is what the controller plays, a *Finding* is what a check has against it, a *Decision*
is what the filter answers to a proposal; the filter *verifies*. Every check is a pure function that returns findings;
`filter.SafetyFilter` is the one loop that composes them.

Units are SI and radians; times of motions are integer nanoseconds of the controller's clock; the joint axis is the last
one, in the order of the robot file.
"""
