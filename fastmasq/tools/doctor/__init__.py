"""What is wrong with a host, or lacking, found by looking from outside: one file for each thing looked at."""
