"""Questions about images and videos, and what was looked at."""
