"""What a robot does, as numbers: statistics and normalization, grippers, rotations."""
