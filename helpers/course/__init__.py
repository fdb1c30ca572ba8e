"""What the notebooks begin and end with, their exercises, and the commands that run them."""
