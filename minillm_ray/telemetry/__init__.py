"""What a run tells people: metrics, events, samples, the console. Files are complete at any moment."""
