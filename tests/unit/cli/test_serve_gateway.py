"""Options of `starai serve gateway` that can be told to be wrong before anything starts."""

from click.testing import CliRunner

from starai.cli.main import cli


def test_a_key_without_a_certificate(tmp_path):
    """A key file alone is a mistake that is told at once."""
    key = tmp_path / "key.pem"
    key.write_text("x")
    done = CliRunner().invoke(cli, ["serve", "gateway", "--tls-key", str(key)])
    assert done.exit_code == 2
    assert "--tls-cert" in done.output


def test_a_certificate_that_is_not_there(tmp_path):
    """A certificate's file must exist."""
    wanted = str(tmp_path / "none.pem")
    done = CliRunner().invoke(cli, ["serve", "gateway", "--tls-cert", wanted])
    assert done.exit_code == 2
    assert "none.pem" in done.output
