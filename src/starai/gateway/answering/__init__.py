"""From the tokens of a job's tasks to OpenAI's answers, whole or as streams."""
