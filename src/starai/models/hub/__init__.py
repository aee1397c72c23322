"""Fetches models from a hub that speaks Hugging Face's protocol; knows nothing of running them.

`listing` reads what a hub offers and picks what a model needs, `session` speaks HTTP, `transfer`
brings one file, `pull` brings a model.
"""

from starai.models.hub.pull import PUBLIC_HUB, PullProgress, pull
from starai.models.hub.session import HubTimeouts

__all__ = ["PUBLIC_HUB", "HubTimeouts", "PullProgress", "pull"]
