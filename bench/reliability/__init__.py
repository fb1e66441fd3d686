"""What was tried to break the product, and what came of it: damaged files, kills, interrupts, threads, fuzzing."""
