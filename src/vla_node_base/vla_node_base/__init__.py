"""The only rclpy glue of the suite: everything that its nodes have in common, and nothing of what they are for."""
