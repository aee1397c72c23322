"""Norms go through the compiled kernel only where it gives what the model's own gives."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from starai.engines.linear.fusing import refit  # noqa: E402
from starai.engines.linear.norms import NativeNorm, native_norm  # noqa: E402
from starai.engines.native import library  # noqa: E402


@pytest.fixture(autouse=True)
def _compiled():
    if library.load() is None:
        pytest.skip(library.why_not())


@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0), (Gemma3RMSNorm, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kinds_of_weights_are_recognised(kind, offset, dtype):
    """A weight that multiplies and one that is added to 1 are told apart, and give the same."""
    norm = kind(48, eps=1e-5).to(dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    found = native_norm(norm)
    assert found.offset == offset
    x = torch.randn(2, 3, 5, 48).to(dtype)
    bits = 2.0**-6 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found(x), norm(x), rtol=bits, atol=bits)


def test_what_agrees_with_neither_stays():
    """A norm that does something else is not replaced, whatever it is called."""

    class OddRMSNorm(LlamaRMSNorm):
        """Twice what its name says."""

        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    class GatingRMSNorm(LlamaRMSNorm):
        """Takes a gate."""

        def forward(self, hidden_states, gate):
            return super().forward(hidden_states) * gate

    odd = OddRMSNorm(16)
    odd.weight.data.uniform_(0.5, 1.5)  # of ones, twice the weight would be one more
    assert native_norm(odd) is None
    assert native_norm(GatingRMSNorm(16)) is None
    assert native_norm(torch.nn.LayerNorm(16)) is None


@pytest.mark.parametrize(("family", "norms"), [("llama", 7), ("qwen3", 13), ("gemma3", 19)])
def test_every_norm_of_a_model_is_replaced(folder_of, family, norms):
    """Those before layers, behind them, and those of queries and keys."""
    model = AutoModelForCausalLM.from_pretrained(folder_of(family)).eval()
    report = refit(model, "bf16")
    assert report.norms == norms
    assert sum(isinstance(module, NativeNorm) for module in model.modules()) == norms
    assert refit(model, "bf16").norms == 0
