"""OpenAI's chat completions over HTTP, with the server of transformers."""
