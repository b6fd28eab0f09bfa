"""An OpenAI-compatible server: one running batch, a dial for each request, and a page that shows why."""
