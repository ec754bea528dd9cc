"""Writes small checkpoints of GPT-2 and Llama in configurations of all kinds, and what they compute.

usage: python make-models.py OUT_DIR

Needs torch only: the two architectures are written out below, in float64. Weights are stored in float32.
"""
import json
import math
import os
import struct
import sys

import torch
import torch.nn.functional as F

STORED = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
VOCAB, POSITIONS, TOKENS, PROMPT, NEW = 13, 24, 12, 8, 12


def attend(q, k, v, scale, padding):
    """(B, H, T, D), k and v with as many heads or a divisor; padding (B, T)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1) | padding[:, None, None, :]
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -1e30)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def positions(padding):
    return (~padding).long().cumsum(-1).sub(1).clamp(min=0)


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def gpt2_weights(c):
    e, inner = c["n_embd"], c["n_inner"] or 4 * c["n_embd"]
    shapes = {"wte.weight": (VOCAB, e), "wpe.weight": (POSITIONS, e), "ln_f.weight": (e,), "ln_f.bias": (e,)}
    for i in range(c["n_layer"]):
        for name, shape in {"attn.c_attn": (e, 3 * e), "attn.c_proj": (e, e), "mlp.c_fc": (e, inner), "mlp.c_proj": (inner, e)}.items():
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = shape, shape[1:]
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{name}.weight"] = shapes[f"h.{i}.{name}.bias"] = (e,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, e)
    return shapes


def gpt2(c, w, ids, padding):
    e, n, act = c["n_embd"], c["n_head"], ACTIVATIONS[c["activation_function"]]
    norm = lambda x, name: F.layer_norm(x, (e,), w[f"{name}.weight"], w[f"{name}.bias"], c["layer_norm_epsilon"])
    conv = lambda x, name: x @ w[f"{name}.weight"] + w[f"{name}.bias"]
    x = w["wte.weight"][ids] + w["wpe.weight"][positions(padding)]
    for i in range(c["n_layer"]):
        q, k, v = (heads(y, n) for y in conv(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(e, -1))
        scale = 1 / math.sqrt(e // n) if c["scale_attn_weights"] else 1
        if c["scale_attn_by_inverse_layer_idx"]:
            scale /= i + 1
        x = x + conv(attend(q, k, v, scale, padding), f"h.{i}.attn.c_proj")
        x = x + conv(act(conv(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


def head_dim(c):
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def llama_weights(c):
    e, inner, d = c["hidden_size"], c["intermediate_size"], head_dim(c)
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    shapes = {"model.embed_tokens.weight": (VOCAB, e), "model.norm.weight": (e,)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (e,)
        for name, shape in {"q_proj": (q, e), "k_proj": (kv, e), "v_proj": (kv, e), "o_proj": (e, q)}.items():
            shapes[f"{at}self_attn.{name}.weight"] = shape
            if c["attention_bias"]:
                shapes[f"{at}self_attn.{name}.bias"] = shape[:1]
        for name, shape in {"gate_proj": (inner, e), "up_proj": (inner, e), "down_proj": (e, inner)}.items():
            shapes[f"{at}mlp.{name}.weight"] = shape
            if c["mlp_bias"]:
                shapes[f"{at}mlp.{name}.bias"] = shape[:1]
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, e)
    return shapes


def frequency(c, i, d):
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    f = rope.get("rope_theta", c.get("rope_theta", 10000)) ** (-2 * i / d)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return f / rope["factor"]
    if kind == "llama3":
        wave = 2 * math.pi / f
        low, high, length = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        if wave > length / low:
            return f / rope["factor"]
        if wave >= length / high:
            smooth = (length / wave - low) / (high - low)
            return (1 - smooth) * f / rope["factor"] + smooth * f
    return f


def rotate(c, x, padding):
    d = x.shape[-1]
    f = torch.tensor([frequency(c, i, d) for i in range(d // 2)], dtype=torch.float64)
    angle = positions(padding)[:, None, :, None] * f
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def llama(c, w, ids, padding):
    d, n, kv = head_dim(c), c["num_attention_heads"], c["num_key_value_heads"]
    act = ACTIVATIONS[c["hidden_act"]]
    norm = lambda x, name: x / (x.square().mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]
    linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        y = norm(x, f"{at}.input_layernorm")
        q, k, v = (heads(linear(y, f"{at}.self_attn.{p}_proj"), h) for p, h in (("q", n), ("k", kv), ("v", kv)))
        x = x + linear(attend(rotate(c, q, padding), rotate(c, k, padding), v, 1 / math.sqrt(d), padding), f"{at}.self_attn.o_proj")
        y = norm(x, f"{at}.post_attention_layernorm")
        gated = act(linear(y, f"{at}.mlp.gate_proj")) * linear(y, f"{at}.mlp.up_proj")
        x = x + linear(gated, f"{at}.mlp.down_proj")
    return norm(x, "model.norm") @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": 12, "n_layer": 2, "n_head": 3,
    "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True,
}
LLAMA = {
    "model_type": "llama", "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "hidden_size": 16,
    "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False,
}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
# Name: config, dtype of the stored weights, and whether as a bare model: without prefix, with buffers of old files.
MODELS = {
    "gpt2_relu": ({**GPT2, "activation_function": "relu", "n_inner": 10, "tie_word_embeddings": False}, torch.float32, False),
    "gpt2_scales": ({**GPT2, "activation_function": "gelu", "n_head": 2, "layer_norm_epsilon": 1e-2,
                     "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, torch.float32, True),
    "gpt2_half": ({**GPT2, "activation_function": "silu", "n_layer": 1}, torch.float16, False),
    "llama_old": ({**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0},
                   "num_key_value_heads": 4, "head_dim": None, "hidden_act": "gelu"}, torch.float32, False),
    "llama_biases": ({**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, **LLAMA3},
                      "num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-2, "attention_bias": True,
                      "mlp_bias": True, "tie_word_embeddings": True}, torch.float32, False),
    "llama_bfloat": ({**LLAMA, "num_hidden_layers": 1, "hidden_act": "gelu_pytorch_tanh"}, torch.bfloat16, False),
}


def write(path, tensors):
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, t in tensors.items():
        blob = t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": STORED[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def draw(name, shape, dtype):
    x = torch.randn(shape, dtype=torch.float64) * (0.4 if len(shape) == 2 else 0.2)
    return (x + (1 if len(shape) == 1 and name.endswith("weight") else 0)).to(dtype)


def main(out):
    for number, (model, (config, dtype, bare)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        shapes, forward = (gpt2_weights, gpt2) if config["model_type"] == "gpt2" else (llama_weights, llama)
        stored = {name: draw(name, shape, dtype) for name, shape in shapes(config).items()}
        w = {name: t.double().requires_grad_() for name, t in stored.items()}
        ids = torch.randint(0, VOCAB, (2, TOKENS))
        ids[0, number % 3] = 0
        logits = forward(config, w, ids, torch.zeros_like(ids, dtype=torch.bool))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        # As Hugging Face's generate with pad_token_id = 0, which hides zeros in the prompt.
        generated = ids[:1, :PROMPT]
        for new in range(NEW):
            padding = F.pad(ids[:1, :PROMPT] == 0, (0, new))
            best = forward(config, w, generated, padding)[:, -1].topk(2, -1)
            # Far enough apart that float32 chooses the same.
            assert (best.values[0, 0] - best.values[0, 1]).item() > 1e-3, model
            generated = torch.cat([generated, best.indices[:, :1]], 1)
        prefix = "transformer." if config["model_type"] == "gpt2" and not bare else ""
        full = lambda name: name if name.startswith("lm_head") else prefix + name
        golden = {"grad." + full(name): t.grad for name, t in w.items()}
        golden |= {"logits": logits, "loss": loss.reshape(1), "generated": generated.int(), "input_ids": ids.int()}
        files = {full(name): t for name, t in stored.items()}
        if bare:
            files["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
            files["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        folder = os.path.join(out, model)
        os.makedirs(folder, exist_ok=True)
        write(os.path.join(folder, "model.safetensors"), files)
        write(os.path.join(folder, "golden.safetensors"), golden)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file, indent=1)
            file.write("\n")


main(*sys.argv[1:])
