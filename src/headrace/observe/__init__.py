"""What lets people see what a process does: its logs; counters and traces have their place here."""
