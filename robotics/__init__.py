"""Robots: environments and their scripted experts, policies, rollouts, demonstrations."""
