"""The QoS profiles of the suite's interfaces."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

# Cameras, joint states, wrenches: the newest counts, a lost one is replaced by the next.
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)

# Chunks and commands: none may be lost, only the newest counts.
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

# Decisions, events: none may be lost.
EVENT = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)

# States, descriptions, markers: who comes late gets the newest.
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
