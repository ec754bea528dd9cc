# PyTorch, eager, as installed: python3 torch-peer.py WORKLOAD RUNS THREADS. Prints one line of JSON like peer.mjs.
import json, math, os, statistics, sys, time

name, runs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(threads)
try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
torch.set_num_threads(threads)


def hashed(seed, n):
    mask = 0xFFFFFFFF
    h = (np.arange(n, dtype=np.uint64) * 0x9E3779B1 + seed * 0x85EBCA6B) & mask
    h = ((h ^ (h >> np.uint64(16))) * 0x7FEB352D) & mask
    h = ((h ^ (h >> np.uint64(15))) * 0x846CA68B) & mask
    return ((h ^ (h >> np.uint64(16))) >> np.uint64(8)) & 0xFFFFFF


def uniform(seed, shape, scale=1.0):
    n = int(np.prod(shape))
    return torch.from_numpy(((hashed(seed, n).astype(np.float64) / 2**23 - 1) * scale).astype(np.float32)).reshape(shape)


def positions(n):
    return [(j * 1000003 + 7919) % n for j in range(16)]


def pick(t):
    flat = t.detach().reshape(-1)
    return [flat[p].item() for p in positions(flat.numel())]


def plain(fn, *inputs):
    def run():
        with torch.no_grad():
            return fn(*inputs)

    return run, lambda: pick(run())


def backward(fn, inputs, g):
    """The gradient alone: the graph is kept."""
    for x in inputs:
        x.requires_grad_(True)
    y = fn(*inputs)

    def run():
        return torch.autograd.grad(y, inputs, g, retain_graph=True)

    return run, lambda: [v for d in run() for v in pick(d)]


def both(fn, inputs, g):
    """The forward pass and the gradient of all inputs."""
    for x in inputs:
        x.requires_grad_(True)

    def run():
        return torch.autograd.grad(fn(*inputs), inputs, g)

    return run, lambda: [v for d in run() for v in pick(d)]


def conv(n, c, size, o, k, stride, padding, gradient):
    to = (size + 2 * padding - k) // stride + 1
    inputs = [uniform(1, (n, c, size, size)), uniform(2, (o, c, k, k), 1 / math.sqrt(c * k * k)), uniform(3, (o,))]

    def fn(x, w, b):
        return F.conv2d(x, w, b, stride, padding)

    return both(fn, inputs, uniform(4, (n, o, to, to))) if gradient else plain(fn, *inputs)


convolutions = {
    "conv 3→64": (32, 3, 32, 64, 3, 1, 1),
    "conv 64→128": (32, 64, 16, 128, 3, 1, 1),
    "conv patches": (8, 3, 224, 384, 16, 16, 0),
}
images = (32, 64, 32, 32)


def batch_norm(gradient):
    inputs = [uniform(1, images), uniform(3, (64,)), uniform(4, (64,))]
    mean, variance = torch.zeros(64), torch.zeros(64)

    def fn(x, w, b):
        return F.batch_norm(x, mean, variance, w, b, True)

    return both(fn, inputs, uniform(2, images)) if gradient else plain(fn, *inputs)


def qkv(t):
    return [uniform(seed, (1, 8, t, 64)) for seed in (1, 2, 3)]


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_backward():
    q, k, v = [x.requires_grad_(True) for x in qkv(1024)]
    g = uniform(4, (1, 8, 1024, 64))

    def run():
        return torch.autograd.grad(attend(q, k, v), (q, k, v), g)

    return run, lambda: [x for d in run() for x in pick(d)]


def linear_attention(q, k, v, chunk=64):
    b, h, t, d = q.shape
    n = t // chunk
    fq, fk = [(F.elu(x) + 1).view(h, n, chunk, d) for x in (q, k)]
    v = v.view(h, n, chunk, d)
    states = fk.transpose(-1, -2) @ v
    before = states.cumsum(1) - states
    sums = fk.sum(2, keepdim=True)
    total = sums.cumsum(1) - sums
    w = (fq @ fk.transpose(-1, -2)).tril()
    below = w.sum(-1, keepdim=True) + (fq * total).sum(-1, keepdim=True)
    return ((w @ v + fq @ before) / (below + 1e-6)).view(b, h, t, d)


hyper = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-8)


def adamw():
    p = uniform(1, (10_000_000,)).requires_grad_(True)
    p.grad = uniform(2, (10_000_000,))
    optimizer = torch.optim.AdamW([p], weight_decay=0.1, fused=True, **hyper)

    def values():
        optimizer.step()
        return pick(p)

    return optimizer.step, values


def gpt_step(layers, heads, c, b, t, vocab):
    shapes = [("wte.weight", (vocab, c), 0.02), ("wpe.weight", (t, c), 0.02)]
    residual = 0.02 / math.sqrt(2 * layers)
    for i in range(layers):
        shapes += [
            (f"h.{i}.ln_1.weight", (c,), 0),
            (f"h.{i}.attn.c_attn.weight", (3 * c, c), 0.02),
            (f"h.{i}.attn.c_proj.weight", (c, c), residual),
            (f"h.{i}.ln_2.weight", (c,), 0),
            (f"h.{i}.mlp.c_fc.weight", (4 * c, c), 0.02),
            (f"h.{i}.mlp.c_proj.weight", (c, 4 * c), residual),
        ]
    shapes.append(("ln_f.weight", (c,), 0))
    p = {}
    for seed, (key, shape, std) in enumerate(shapes):
        value = uniform(100 + seed, shape, std * math.sqrt(3)) if std else torch.ones(shape)
        p[key] = value.requires_grad_(True)
    tokens = torch.from_numpy((hashed(1, b * t) % vocab).astype(np.int64)).view(b, t)
    targets = torch.from_numpy((hashed(2, b * t) % vocab).astype(np.int64)).view(-1)
    groups = [
        {"params": [x for x in p.values() if x.dim() > 1], "weight_decay": 0.1},
        {"params": [x for x in p.values() if x.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True, **hyper)

    def run():
        x = p["wte.weight"][tokens] + p["wpe.weight"]
        for i in range(layers):
            y = F.layer_norm(x, (c,), p[f"h.{i}.ln_1.weight"])
            three = F.linear(y, p[f"h.{i}.attn.c_attn.weight"]).split(c, 2)
            q, k, v = [a.view(b, t, heads, c // heads).transpose(1, 2) for a in three]
            mixed = attend(q, k, v).transpose(1, 2).reshape(b, t, c)
            x = x + F.linear(mixed, p[f"h.{i}.attn.c_proj.weight"])
            y = F.layer_norm(x, (c,), p[f"h.{i}.ln_2.weight"])
            wide = F.gelu(F.linear(y, p[f"h.{i}.mlp.c_fc.weight"]))
            x = x + F.linear(wide, p[f"h.{i}.mlp.c_proj.weight"])
        logits = F.linear(F.layer_norm(x, (c,), p["ln_f.weight"]), p["wte.weight"])
        loss = F.cross_entropy(logits.view(-1, vocab), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
        optimizer.step()
        return loss.item()

    return run, lambda: [run(), run(), run()]


def recurrent(kind, inputs, hidden, b, t):
    layer = getattr(torch.nn, kind)(inputs, hidden)
    parameters = list(layer.parameters())
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(uniform(10 + i, p.shape, 1 / math.sqrt(hidden)))
    x = uniform(1, (t, b, inputs)).requires_grad_(True)
    g = uniform(2, (t, b, hidden))

    def run():
        return torch.autograd.grad(layer(x)[0], [x, *parameters], g)

    return run, lambda: [v for d in run() for v in pick(d)]


def tiny_add():
    a, b = [uniform(seed, (16,)).requires_grad_(True) for seed in (1, 2)]
    return lambda: a + b, lambda: pick(a + b)


def gemm(m, k, n):
    return plain(torch.matmul, uniform(1, (m, k)), uniform(2, (k, n)))


def rows(seed=1):
    return uniform(seed, (4096, 1024), 4.0 if seed == 1 else 1.0)


def layer_norm(x, w, b):
    return F.layer_norm(x, (1024,), w, b)


def softmax(x):
    return F.softmax(x, -1)


def affine():
    return uniform(3, (1024,)), uniform(4, (1024,))


workloads = {
    "gemm 1024": lambda: gemm(1024, 1024, 1024),
    **{f"gemm M={m} cached": (lambda m=m: gemm(m, 512, 512)) for m in (1, 2, 4, 8, 16)},
    "attention forward": lambda: plain(attend, *qkv(1024)),
    "attention forward + backward": attention_backward,
    "linear attention T=4096": lambda: plain(linear_attention, *qkv(4096)),
    "linear attention T=65536": lambda: plain(linear_attention, *qkv(65536)),
    "GELU forward": lambda: plain(F.gelu, rows()),
    "GELU backward": lambda: backward(F.gelu, [rows()], rows(2)),
    "softmax forward": lambda: plain(softmax, rows()),
    "softmax backward": lambda: backward(softmax, [rows()], rows(2)),
    "layer norm forward": lambda: plain(layer_norm, rows(), *affine()),
    "layer norm backward": lambda: backward(layer_norm, [rows(), *affine()], rows(2)),
    **{f"{name} forward": (lambda a=a: conv(*a, False)) for name, a in convolutions.items()},
    **{f"{name} forward + backward": (lambda a=a: conv(*a, True)) for name, a in convolutions.items()},
    "batch norm forward": lambda: batch_norm(False),
    "batch norm forward + backward": lambda: batch_norm(True),
    "max pool forward + backward": lambda: both(
        lambda x: F.max_pool2d(x, 2), [uniform(1, images)], uniform(2, (32, 64, 16, 16))
    ),
    "AdamW 10M": adamw,
    "training step A": lambda: gpt_step(4, 4, 128, 12, 64, 65),
    "training step B": lambda: gpt_step(6, 6, 384, 16, 256, 65),
    "training step A, compiled": lambda: gpt_step(4, 4, 128, 12, 64, 65),
    "training step B, compiled": lambda: gpt_step(6, 6, 384, 16, 256, 65),
    "LSTM": lambda: recurrent("LSTM", 128, 256, 32, 128),
    "GRU": lambda: recurrent("GRU", 128, 256, 32, 128),
    "LSTM of characters": lambda: recurrent("LSTM", 128, 128, 16, 64),
    "GRU of characters": lambda: recurrent("GRU", 128, 128, 16, 64),
    "tiny": lambda: gpt_step(2, 2, 32, 2, 16, 65),
    "tiny add": tiny_add,
}


def main():
    if name not in workloads:
        return {}
    run, values = workloads[name]()
    computed = values()

    def timed(repeat):
        begin = time.perf_counter()
        for _ in range(repeat):
            run()
        return (time.perf_counter() - begin) * 1000 / repeat

    # What takes over 20 seconds is run once.
    first = timed(1)
    if first > 20_000:
        return {"ms": first, "values": computed}
    last = min(first, timed(1))
    repeat = max(1, min(10000, round(20 / last)))
    timed(min(repeat, 100))
    return {"ms": statistics.median(timed(repeat) for _ in range(3 if last > 1000 else runs)), "values": computed}


try:
    print(json.dumps(main()))
except Exception as error:
    print(json.dumps({"error": str(error).split("\n")[0]}))
