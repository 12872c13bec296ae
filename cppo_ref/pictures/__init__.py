"""Plots of training and policies."""
