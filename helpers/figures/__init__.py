"""Pictures: plots, slices, viewers, GIFs."""
