"""What a person or a schedule starts. The order of stages is here, arithmetic in `recall`, effects in `tasks`."""
