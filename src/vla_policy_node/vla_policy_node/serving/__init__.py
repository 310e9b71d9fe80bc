"""Behind the server's front: engines that answer calls of many clients, in this process or on Ray."""
