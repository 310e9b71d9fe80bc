"""What the node decides, without ROS, threads or clocks of its own."""
