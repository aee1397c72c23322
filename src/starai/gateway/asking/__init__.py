"""What a request asks for: OpenAI's bodies in, an `Ask` out, or a refusal that names the field."""
