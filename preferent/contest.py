"""Several models side by side: what answers are missing is made, then judged."""
