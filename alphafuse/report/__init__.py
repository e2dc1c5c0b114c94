"""Results as people read them: text, markdown, json and plots."""
