"""Robot data sets: episodes of steps, read as windows with a picture, a video, actions and a state."""
