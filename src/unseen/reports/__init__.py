"""What a study or a reproduction found, for people: HTML, terminal, Markdown."""
