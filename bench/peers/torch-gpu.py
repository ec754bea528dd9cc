# PyTorch on its GPU: python3 torch-gpu.py RUNS WORKLOAD ... Prints a line of JSON per workload: { name: milliseconds }.
import json, math, statistics, sys, time

runs, names = int(sys.argv[1]), sys.argv[2:]
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    sys.exit("PyTorch finds no GPU")
torch.set_default_device("cuda")


def seconds(run, repeat):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeat):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeat


def timed(run):
    last = min(seconds(run, n + 1) for n in range(4))
    repeat = max(1, math.ceil(0.04 / last))
    return 1000 * statistics.median(seconds(run, repeat) for _ in range(runs))


def noise(*shape, dtype=torch.float32):
    return (torch.rand(shape) * 2 - 1).to(dtype)


def product(a, b):
    return lambda: a @ b


def both(fn, *inputs):
    xs = [x.requires_grad_() for x in inputs[:-1]]
    return lambda: torch.autograd.grad(fn(*xs), xs, inputs[-1])


def step(layers, heads, c, b, t, vocab, graph=False, mixed=False):
    def weight(*shape, std=0.02):
        return (torch.randn(shape) * std).requires_grad_()

    p = {"wte": weight(vocab, c), "wpe": weight(t, c), "ln_f": torch.ones(c, requires_grad=True)}
    for i in range(layers):
        p[f"{i}ln1"], p[f"{i}ln2"] = torch.ones(c, requires_grad=True), torch.ones(c, requires_grad=True)
        p[f"{i}qkv"], p[f"{i}proj"] = weight(3 * c, c), weight(c, c)
        p[f"{i}up"], p[f"{i}down"] = weight(4 * c, c), weight(c, 4 * c)
    parameters = list(p.values())
    groups = [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": 0.1},
        {"params": [x for x in parameters if x.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True, capturable=graph)
    tokens, targets = torch.randint(vocab, (b, t)), torch.randint(vocab, (b, t))

    def once():
        with torch.autocast("cuda", torch.float16, enabled=mixed):
            loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not graph)

    def forward():
        x = F.embedding(tokens, p["wte"]) + p["wpe"]
        for i in range(layers):
            qkv = F.linear(F.layer_norm(x, (c,), p[f"{i}ln1"]), p[f"{i}qkv"])
            q, k, v = (y.view(b, t, heads, c // heads).transpose(1, 2) for y in qkv.split(c, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(b, t, c), p[f"{i}proj"])
            h = F.linear(F.layer_norm(x, (c,), p[f"{i}ln2"]), p[f"{i}up"])
            x = x + F.linear(F.gelu(h), p[f"{i}down"])
        logits = F.linear(F.layer_norm(x, (c,), p["ln_f"]), p["wte"])
        return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    return once


def captured(once):
    """The step as a CUDA graph: what compiled steps stand beside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay


layers = {"qkv": (384, 1152), "proj": (384, 384), "up": (384, 1536), "down": (1536, 384), "head": (384, 65)}


def workload(name):
    # What follows the last comma: how it is run, or in what.
    name, *how = name.split(", ")
    words = name.split()
    graph, mixed = "compiled" in how, "mixed" in how
    of = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(how[-1] if how else "", torch.float32)
    steps = {
        "training step A": (4, 4, 128, 12, 64, 65),
        "training step 384": (6, 6, 384, 64, 256, 65),
        "GPT-2 124M": (12, 12, 768, 8, 1024, 50257),
    }
    if name in steps:
        once = step(*steps[name], graph=graph, mixed=mixed)
        return captured(once) if graph else once
    if name.startswith("gemm 384"):
        m, (k, n) = 64 * 256, layers[words[2]]
        x, w, dy = (noise(*shape, dtype=of) for shape in ((m, k), (n, k), (m, n)))
        return {"forward": product(x, w.T), "dx": product(dy, w), "dw": product(dy.T, x)}[words[3]]
    if words[0] == "gemm":
        n = int(words[1])
        return product(noise(n, n, dtype=of), noise(n, n, dtype=of))
    if words[0] == "attention":
        fn = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        xs = [noise(4, 12, 2048, 64, dtype=of) for _ in range(4)]
        return both(fn, *xs) if "backward" in name else lambda: fn(*xs[:3])
    rows, columns = 65536, 1024
    if name.startswith("AdamW"):
        p = noise(rows * columns).requires_grad_()
        p.grad = noise(rows * columns)
        return torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True).step
    w, b = noise(columns, dtype=of), noise(columns, dtype=of)
    fns = {
        "softmax": lambda x: F.softmax(x, -1),
        "layer norm": lambda x, w=w, b=b: F.layer_norm(x, (columns,), w, b),
        "GELU": lambda x: F.gelu(x),
    }
    for key, fn in fns.items():
        if name.startswith(key):
            x, g = noise(rows, columns, dtype=of), noise(rows, columns, dtype=of)
            if "backward" not in name:
                return lambda: fn(x)
            return both(fn, x, w, b, g) if key == "layer norm" else both(fn, x, g)
    return None


print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}", file=sys.stderr)
for name in names:
    try:
        run = workload(name)
        if run:
            print(json.dumps({name: timed(run)}), flush=True)
    except Exception as error:
        print(json.dumps({name: f"{error}"[:200]}), flush=True)
    torch.cuda.empty_cache()
