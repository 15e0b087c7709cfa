"""What users declare and what processes tell each other about it: frozen structs, no behaviour that waits or sends."""
