"""How the shipped policy is made: demonstrations by the expert, training, corrections, evaluation. No ROS."""
