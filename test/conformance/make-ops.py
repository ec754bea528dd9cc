"""Writes ops.json and ops.safetensors: what PyTorch answers to the samples of its own operator table (OpInfo).

usage: python make-ops.py OUT_DIR [SAMPLES] [more|layers|half]

Needs torch. SAMPLES (default 20) limits the samples per operator, dtype and memory layout. With `more` or `layers` it takes
the operators of MORE or LAYERS instead, with `half` tensors of 16 bits.
"""
import json
import math
import os
import struct
import sys

import torch

OPERATORS = """
add sub mul div pow exp log log1p expm1 sqrt rsqrt sin cos tanh sigmoid erf abs neg sign floor ceil round square
reciprocal maximum minimum clamp where isnan logical_not eq ne lt le gt ge relu leaky_relu gelu silu elu softplus
sum mean prod amax amin argmax argmin var std softmax log_softmax softmin logsumexp cumsum cumprod matmul mm bmm addmm
baddbmm outer einsum permute transpose movedim T reshape view flatten expand broadcast_to repeat tile cat stack split
chunk narrow unbind squeeze unsqueeze flip roll diagonal tril triu pad index_select gather scatter_add masked_fill sort
topk linear embedding layer_norm rms_norm group_norm dropout cross_entropy nll_loss mse_loss smooth_l1_loss huber_loss
binary_cross_entropy_with_logits scaled_dot_product_attention
""".split()
# Compositions, which come in a folder of their own.
MORE = """
tan atan asin acos sinh cosh asinh acosh atanh atan2 log2 log10 exp2 trunc frac isinf isfinite isposinf isneginf erfc
erfinv nan_to_num remainder fmod floor_divide lerp logaddexp hypot logical_xor isclose addcmul addcdiv clip max min
aminmax median quantile cummax cummin norm var_mean std_mean count_nonzero nansum nanmean diff logcumsumexp dist cdist
diag diag_embed trace kron tensordot cross meshgrid repeat_interleave hstack vstack swapaxes unfold searchsorted
scatter index_add index_copy index_fill take take_along_dim masked_scatter index_put selu mish hardswish hardsigmoid
relu6 logsigmoid softsign tanhshrink celu hardtanh softshrink threshold prelu glu kl_div binary_cross_entropy
pairwise_distance margin_ranking_loss cosine_embedding_loss triplet_margin_loss normalize cosine_similarity
""".split()
# Layers as functions, in a folder of their own too.
LAYERS = """
conv1d conv2d conv_transpose1d conv_transpose2d max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d batch_norm hinge_embedding_loss soft_margin_loss l1_loss
poisson_nll_loss gaussian_nll_loss multilabel_soft_margin_loss pixel_shuffle unfold rms_norm instance_norm bilinear
local_response_norm
""".split()
DTYPES = [torch.float32, torch.int32, torch.bool]
HALVES = [torch.float16, torch.bfloat16]
STORED = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
}

tensors = {}


class Case:
    """Names a case's tensors and remembers which of them are differentiated."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.count = 0
        self.leaves = []

    def tensor(self, t, leaf=False):
        name = f"{self.prefix}.{self.count}"
        self.count += 1
        data = t.detach().to(torch.uint8) if t.dtype == torch.bool else t.detach()
        tensors[name] = data.contiguous().clone()
        if leaf and t.requires_grad:
            self.leaves.append(t)
        return {
            "tensor": name,
            "dtype": str(t.dtype).removeprefix("torch."),
            "shape": list(t.shape),
            "strides": list(t.stride()),
            "requires_grad": leaf and t.requires_grad,
        }

    def value(self, v):
        if isinstance(v, torch.Tensor):
            return self.tensor(v, leaf=True)
        if isinstance(v, (list, tuple)):
            return {"list": [self.value(x) for x in v]}
        if isinstance(v, torch.dtype):
            return {"dtype": str(v).removeprefix("torch.")}
        if isinstance(v, float) and not math.isfinite(v):
            return {"value": str(v)}
        return {"value": v}


def record(info, sample, number):
    name = f"{info.name.removeprefix('nn.functional.')}.{number}"
    case = Case(name)
    entry = {
        "op": info.name,
        "input": case.value(sample.input),
        "args": case.value(sample.args),
        "kwargs": {k: case.value(v) for k, v in sample.kwargs.items()},
    }
    result = info(sample.input, *sample.args, **sample.kwargs)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    entry["outputs"] = [case.tensor(y) for y in outputs]
    floating = [y for y in outputs if y.requires_grad]
    if case.leaves and floating:
        cotangents = [torch.randn_like(y) for y in floating]
        grads = torch.autograd.grad(floating, case.leaves, cotangents, allow_unused=True)
        entry["cotangents"] = [case.tensor(d) for d in cotangents]
        entry["grads"] = [None if g is None else case.tensor(g) for g in grads]
    return entry


def write(path):
    header, blobs, at = {}, [], 0
    for name, t in tensors.items():
        blob = (t.view(torch.int16) if t.dtype in HALVES else t).numpy().tobytes()
        header[name] = {"dtype": STORED[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def main(out, limit=20, which=""):
    # Here, for make-modules.py uses what is above without the table.
    from torch.testing._internal.common_methods_invocations import op_db

    limit, operators = int(limit), {"more": MORE, "layers": LAYERS}.get(which, OPERATORS)
    # Of this name there are two: the windows of a tensor, and the patches of images.
    other = "unfold" if which == "layers" else "nn.functional.unfold"
    cases = []
    for info in op_db:
        if info.name.removeprefix("nn.functional.") not in operators or info.name == other:
            continue
        for dtype in HALVES if which == "half" else DTYPES:
            if dtype not in info.supported_dtypes("cpu"):
                continue
            differentiable = dtype.is_floating_point and info.supports_autograd
            torch.manual_seed(1)
            for number, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=differentiable)):
                if number == limit:
                    break
                # Float32 keeps nothing of the exponentials of differences between numbers as large as these.
                if info.name == "logcumsumexp" and sample.input.abs().max() > 1000:
                    continue
                for view in (sample, sample.noncontiguous()):
                    try:
                        cases.append(record(info, view, len(cases)))
                    except RuntimeError as error:
                        # What PyTorch has no code for in 16 bits.
                        if which != "half":
                            raise
                        print(info.name, dtype, str(error).splitlines()[0])
    os.makedirs(out, exist_ok=True)
    write(os.path.join(out, "ops.safetensors"))
    with open(os.path.join(out, "ops.json"), "w") as file:
        json.dump({"source": f"PyTorch {torch.__version__} OpInfo samples", "cases": cases}, file)
    print(f"{len(cases)} cases of {len({c['op'] for c in cases})} operators")


if __name__ == "__main__":
    main(*sys.argv[1:])
