"""A tabletop in numpy that stands in for SIMPLER's Google robot: the same tasks, 3 steps a second, one camera.

There are no forces: the gripper goes where it is told, what it closes around moves with it, and what it lets go of
drops straight down. An episode takes milliseconds, so demonstrations -> training -> rollouts run on a laptop and in CI.
Its success rates say whether a policy has learned anything, and are not comparable with SIMPLER's.
"""
