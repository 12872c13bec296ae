"""Plots of training and policies, and the diagram of the method."""
