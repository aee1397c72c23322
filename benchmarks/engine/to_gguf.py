"""The yardstick for llama.cpp: its folder as BF16 GGUF, then Q8_0 and Q4_0 by llama.cpp itself.

llama.cpp's own quantiser decides what stays at a higher precision (a tied head becomes Q6_K beside
Q4_0), so that the files are what its users have. Runs in llama-cpp-python's environment with the
``gguf`` package: ``python to_gguf.py FOLDER OUT``; knows only this one shape.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANTISED = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def renamed(name: str) -> str:
    """A tensor's name in GGUF."""
    stem = name.removesuffix(".weight").removeprefix("model.")
    if stem == "embed_tokens":
        return "token_embd.weight"
    if stem == "norm":
        return "output_norm.weight"
    _, number, rest = stem.split(".", 2)
    return f"blk.{number}.{NAMES[rest]}.weight"


def add_tensors(writer: GGUFWriter, path: Path) -> None:
    """Every tensor of the safetensors file: matrices as they are, norms as float32."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, about in header.items():
        begin, end = about["data_offsets"]
        raw = np.memmap(path, np.uint16, "r", 8 + size + begin, ((end - begin) // 2,))
        if len(about["shape"]) == 1:
            # bfloat16 is the upper half of a float32.
            writer.add_tensor(renamed(name), (raw.astype(np.uint32) << 16).view(np.float32))
        else:
            data = raw.reshape(about["shape"]).view(np.uint8)
            writer.add_tensor(renamed(name), data, raw_dtype=GGMLQuantizationType.BF16)


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """The folder's tokens, and unused ones up to the size that the embedding has."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    known = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    names = known | special
    kinds = [TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(names))]
    kinds += [TokenType.UNUSED] * (size - len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([names.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])  # the reader wants at least one
    writer.add_eos_token_id(max(special))
    writer.add_bos_token_id(max(special))


def write_bf16(folder: Path, out: Path) -> None:
    """The folder's model as one BF16 GGUF."""
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_name("yardstick")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_vocabulary(writer, folder, config["vocab_size"])
    add_tensors(writer, folder / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: Path, out: Path) -> None:
    """All three files, each only if it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "bf16.gguf"
    if not whole.exists():
        write_bf16(folder, whole.with_suffix(".part"))
        whole.with_suffix(".part").rename(whole)
    for name, kind in QUANTISED.items():
        target = out / f"{name}.gguf"
        if target.exists():
            continue
        asked = llama_cpp.llama_model_quantize_default_params()
        asked.ftype, asked.nthread = kind, 1
        part = target.with_suffix(".part")
        if llama_cpp.llama_model_quantize(str(whole).encode(), str(part).encode(), asked):
            raise SystemExit(f"llama.cpp could not write {target.name}")
        part.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
