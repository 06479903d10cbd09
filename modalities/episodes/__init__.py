"""Robot data sets: episodes of steps, read as windows with an image, a video, actions and a state."""
