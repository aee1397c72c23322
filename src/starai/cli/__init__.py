"""The `starai` command. Commands only: what they do lives in the layers below."""
