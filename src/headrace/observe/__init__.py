"""What lets people see: counters, histograms, logs."""
