"""The container files hold what the documentation says; no engine for containers is here."""

from __future__ import annotations

from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_the_image_is_not_root_opens_no_port_and_holds_no_secret() -> None:
    """A user of its own, a volume for the key, and `starai join` as what it does."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = [line.split(" ", 1) for line in lines if " " in line]
    final = words[[i for i, word in enumerate(words) if word[0] == "FROM"][-1] :]
    made = {}
    for instruction, rest in final:
        made.setdefault(instruction, []).append(rest)
    assert made["USER"] == ["starai"]
    assert made["VOLUME"] == ["/data"]
    assert made["ENTRYPOINT"] == ['["starai"]']
    assert made["CMD"] == ['["join"]']
    assert "EXPOSE" not in made
    assert "STARAI_TOKEN=" not in text


def test_every_variant_of_the_compose_file_is_a_polite_stranger() -> None:
    """Each node is unprivileged and read-only but for its volume; no token is written down."""
    yaml = pytest.importorskip("yaml")
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    services = made["services"]
    assert set(services) == {"cpu", "nvidia", "amd", "network"}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["environment"]["STARAI_TOKEN"] == "${STARAI_TOKEN:-}"
        (volume,) = service["volumes"]
        assert volume == f"{name}:/data"
        assert name in made["volumes"]
        assert service["build"]["dockerfile"] == "deploy/Dockerfile"
        assert ("ports" in service) is (name == "network")
    devices = services["nvidia"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["driver"] == "nvidia"
    assert "/dev/kfd" in services["amd"]["devices"]
