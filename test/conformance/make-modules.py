"""Writes what PyTorch's modules, optimisers and schedules compute, for `run-modules.ts` and `run-optimizers.ts`.

usage: python make-modules.py OUT_DIR

Needs torch. Writes modules.json with modules.safetensors (constructor arguments, state dict, inputs, outputs, gradients of the
inputs and of the parameters for random cotangents, buffers afterwards) and optimizers.json with optimizers.safetensors
(parameters, gradients of some steps, parameters after each; and the rates of schedules).
"""
import importlib.util
import json
import os
import sys

import torch

# Its name is no identifier.
place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "make-ops.py")
spec = importlib.util.spec_from_file_location("make_ops", place)
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)


def x(*shape):
    return torch.randn(*shape, requires_grad=True)


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value if v is not None for t in flat(v)]


# Of each module: positional arguments, keyword arguments, inputs, and whether it is trained.
def module_cases():
    for name in """CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 SELU
            SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink""".split():
        yield name, [], {}, [x(3, 4)]
    yield "GELU", [], {"approximate": "tanh"}, [x(3, 4)]
    yield "GLU", [0], {}, [x(4, 3)]
    yield "PReLU", [3], {"init": 0.1}, [x(2, 3, 2)]
    yield "ELU", [0.5], {}, [x(3, 4)]
    yield "CELU", [0.5], {}, [x(3, 4)]
    yield "LeakyReLU", [0.2], {}, [x(3, 4)]
    yield "Softplus", [2.0, 1.0], {}, [x(3, 4)]
    yield "Hardtanh", [-0.5, 0.7], {}, [x(3, 4)]
    yield "Threshold", [0.1, 5.0], {}, [x(3, 4)]
    for name in ["Softmax", "LogSoftmax", "Softmin"]:
        yield name, [1], {}, [x(3, 4)]
        yield name, [], {"dim": -2}, [x(3, 4)]
    yield "Flatten", [], {}, [x(2, 3, 4)]
    yield "Flatten", [0, 1], {}, [x(2, 3, 4)]
    yield "Unflatten", [1, (2, 3)], {}, [x(2, 6)]
    yield "Identity", [], {}, [x(2, 3)]
    yield "CosineSimilarity", [], {}, [x(3, 4), x(3, 4)]
    yield "PairwiseDistance", [], {}, [x(3, 4), x(3, 4)]

    classes = torch.tensor([1, 0, 3, 2, 1])
    for reduction in ["mean", "sum", "none"]:
        r = {"reduction": reduction}
        yield "CrossEntropyLoss", [], r, [x(5, 4), classes]
        yield "NLLLoss", [], r, [x(5, 4), classes]
        for name in ["MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"]:
            yield name, [], r, [x(3, 4), torch.randn(3, 4)]
        yield "BCELoss", [], r, [torch.rand(3, 4, requires_grad=True), torch.rand(3, 4)]
        yield "BCEWithLogitsLoss", [], r, [x(3, 4), torch.rand(3, 4)]
        yield "KLDivLoss", [], r, [x(3, 4), torch.rand(3, 4)]
        yield "CosineEmbeddingLoss", [], r, [x(3, 4), x(3, 4), torch.tensor([1.0, -1.0, 1.0])]
        yield "MarginRankingLoss", [0.3], r, [x(5), x(5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])]
        yield "TripletMarginLoss", [], r, [x(3, 4), x(3, 4), x(3, 4)]
        yield "HingeEmbeddingLoss", [], r, [x(5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])]
        yield "SoftMarginLoss", [], r, [x(5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])]
    yield "KLDivLoss", [], {"reduction": "batchmean", "log_target": True}, [x(3, 4), torch.randn(3, 4)]
    yield "CrossEntropyLoss", [], {"label_smoothing": 0.1, "ignore_index": 2}, [x(5, 4), classes]
    yield "CrossEntropyLoss", [torch.rand(4)], {}, [x(5, 4), classes]
    yield "CrossEntropyLoss", [], {}, [x(2, 4, 3), torch.randint(0, 4, (2, 3))]
    yield "BCEWithLogitsLoss", [], {"pos_weight": torch.rand(4)}, [x(3, 4), torch.rand(3, 4)]
    yield "TripletMarginLoss", [], {"margin": 0.5, "swap": True}, [x(3, 4), x(3, 4), x(3, 4)]
    yield "SmoothL1Loss", [], {"beta": 0.3}, [x(3, 4), torch.randn(3, 4)]
    yield "HuberLoss", [], {"delta": 0.3}, [x(3, 4), torch.randn(3, 4)]

    for kw in [{}, {"affine": False}, {"momentum": 0.3}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.1}]:
        yield "BatchNorm1d", [3], kw, [x(5, 3)]
        yield "BatchNorm2d", [3], kw, [x(2, 3, 4, 3)]
    yield "BatchNorm1d", [3], {}, [x(2, 3, 4)]
    yield "BatchNorm1d", [3], {}, [x(2, 3, 4)], False
    yield "BatchNorm2d", [3], {}, [x(2, 3, 4, 3)], False
    yield "BatchNorm2d", [3], {"track_running_stats": False}, [x(2, 3, 4, 3)], False
    yield "LayerNorm", [4], {}, [x(2, 3, 4)]
    yield "GroupNorm", [2, 4], {}, [x(2, 4, 3)]
    yield "RMSNorm", [4], {}, [x(2, 3, 4)]

    for kw in [
        {}, {"bias": False}, {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"dilation": 2}, {"groups": 2},
        {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    ]:
        yield "Conv1d", [4, 6, 3], kw, [x(2, 4, 9)]
        yield "Conv2d", [4, 6, 3], kw, [x(2, 4, 7, 8)]
    yield "Conv1d", [4, 6, 3], {}, [x(4, 9)]
    yield "Conv2d", [3, 5, (1, 2)], {"stride": (2, 1), "padding": (0, 1)}, [x(2, 3, 5, 4)]
    yield "Conv2d", [3, 5, 1], {}, [x(2, 3, 5, 4)]
    yield "Conv2d", [3, 5, 2], {"stride": 2}, [x(2, 3, 6, 4)]
    yield "Conv2d", [3, 5, 2], {}, [x(3, 6, 4)]
    yield "Conv2d", [4, 8, 3], {"groups": 4, "padding": 1}, [x(2, 4, 5, 5)]
    yield "ConvTranspose1d", [4, 6, 3], {"stride": 2}, [x(2, 4, 5)]
    yield "ConvTranspose2d", [4, 6, 3], {"stride": 2, "padding": 1, "output_padding": 1}, [x(2, 4, 5, 4)]
    for kw in [{}, {"stride": 1}, {"padding": 1}, {"ceil_mode": True}]:
        for kind in ["Max", "Avg"]:
            yield f"{kind}Pool1d", [3], kw, [x(2, 4, 10)]
            yield f"{kind}Pool2d", [3], kw, [x(2, 4, 7, 8)]
    yield "MaxPool2d", [2], {"dilation": 2, "stride": 1}, [x(2, 4, 7, 8)]
    yield "MaxPool2d", [(2, 3)], {"stride": (1, 2), "padding": (1, 0)}, [x(2, 4, 7, 8)]
    yield "AvgPool2d", [3], {"padding": 1, "count_include_pad": False, "ceil_mode": True}, [x(2, 4, 7, 8)]
    yield "MaxPool2d", [2], {}, [x(4, 7, 8)]
    for kind in ["Max", "Avg"]:
        yield f"Adaptive{kind}Pool1d", [3], {}, [x(2, 4, 8)]
        yield f"Adaptive{kind}Pool2d", [(3, 2)], {}, [x(2, 4, 7, 8)]
        yield f"Adaptive{kind}Pool2d", [1], {}, [x(2, 4, 7, 8)]
    yield "ZeroPad2d", [1], {}, [x(2, 3, 4, 5)]
    yield "Unfold", [3], {"padding": 1, "stride": 2}, [x(2, 3, 6, 5)]
    yield "Upsample", [], {"scale_factor": 2.0, "mode": "nearest"}, [x(2, 3, 4, 5)]
    yield "PixelShuffle", [2], {}, [x(2, 8, 3, 4)]

    for name, gates in [("RNN", 1), ("LSTM", 2), ("GRU", 1)]:
        for kw in [
            {}, {"num_layers": 2}, {"bias": False}, {"batch_first": True}, {"bidirectional": True},
            {"num_layers": 2, "bidirectional": True, "batch_first": True},
        ]:
            yield name, [3, 5], kw, [x(4, 2, 3)]
        yield name, [3, 5], {}, [x(4, 3)]
        state = [x(2, 2, 5) for _ in range(gates)]
        yield name, [3, 5], {"num_layers": 2}, [x(4, 2, 3), state[0] if gates == 1 else tuple(state)]
        yield f"{name}Cell", [3, 5], {}, [x(2, 3)]
        state = [x(2, 5) for _ in range(gates)]
        yield f"{name}Cell", [3, 5], {"bias": False}, [x(2, 3), state[0] if gates == 1 else tuple(state)]
        yield f"{name}Cell", [3, 5], {}, [x(3)]
    yield "RNN", [3, 5], {"nonlinearity": "relu"}, [x(4, 2, 3)]
    yield "RNNCell", [3, 5], {"nonlinearity": "relu"}, [x(2, 3)]
    yield "LSTM", [3, 5], {"proj_size": 2, "num_layers": 2}, [x(4, 2, 3)]

    future = torch.triu(torch.ones(5, 5), 1).bool()
    added = torch.zeros(5, 5).masked_fill(future, float("-inf"))
    padded = torch.tensor([[False, False, False, False, True], [False, False, True, True, True]])
    short = torch.tensor([[False, False, False, True], [False, True, True, True]])
    for kw in [{"dropout": 0.0}, {"dropout": 0.0, "norm_first": True, "batch_first": True},
               {"dropout": 0.0, "activation": "gelu", "bias": False}]:
        turn = (lambda t: t) if kw.get("batch_first") else (lambda t: t.detach().transpose(0, 1).contiguous().requires_grad_())
        layer = [8, 2, 12]
        yield "TransformerEncoderLayer", layer, kw, [turn(x(2, 5, 8))]
        yield "TransformerEncoderLayer", layer, kw, [turn(x(2, 5, 8)), {"src_mask": future}]
        yield "TransformerEncoderLayer", layer, kw, [turn(x(2, 5, 8)), {"src_mask": added, "is_causal": True}]
        yield "TransformerEncoderLayer", layer, kw, [turn(x(2, 5, 8)), {"src_key_padding_mask": padded}]
        yield "TransformerDecoderLayer", layer, kw, [turn(x(2, 5, 8)), turn(x(2, 4, 8))]
        yield "TransformerDecoderLayer", layer, kw, [
            turn(x(2, 5, 8)), turn(x(2, 4, 8)),
            {"tgt_mask": future, "memory_key_padding_mask": short},
        ]
        yield "TransformerDecoderLayer", layer, kw, [
            turn(x(2, 5, 8)), turn(x(2, 4, 8)),
            {"tgt_mask": added, "tgt_is_causal": True, "tgt_key_padding_mask": torch.zeros(2, 5).masked_fill(padded, float("-inf"))},
        ]
        whole = {"d_model": 8, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 12, **kw}
        yield "Transformer", [], whole, [turn(x(2, 4, 8)), turn(x(2, 5, 8))]
        yield "Transformer", [], whole, [
            turn(x(2, 4, 8)), turn(x(2, 5, 8)),
            {"tgt_mask": future, "src_key_padding_mask": short, "memory_key_padding_mask": short},
        ]
    for kw in [{}, {"bias": False}, {"batch_first": True}, {"kdim": 3, "vdim": 4, "batch_first": True}]:
        k, v = kw.get("kdim", 8), kw.get("vdim", 8)
        yield "MultiheadAttention", [8, 2], kw, [x(2, 5, 8), x(2, 5, k), x(2, 5, v), {"need_weights": False}]
    yield "MultiheadAttention", [8, 2], {"batch_first": True}, [
        x(2, 5, 8), x(2, 4, 8), x(2, 4, 8), {"need_weights": False, "key_padding_mask": short}]
    yield "MultiheadAttention", [8, 2], {"batch_first": True}, [
        x(2, 5, 8), x(2, 5, 8), x(2, 5, 8), {"need_weights": False, "attn_mask": future}]
    yield "Linear", [3, 4], {}, [x(2, 3)]
    yield "Bilinear", [3, 4, 2], {}, [x(5, 3), x(5, 4)]
    yield "Embedding", [6, 3], {"padding_idx": 1}, [torch.tensor([[1, 0, 5], [2, 2, 1]])]


def record_module(number, name, args, kwargs, inputs, training=True):
    case = ops.Case(f"{name}.{number}")
    named = inputs.pop() if inputs and isinstance(inputs[-1], dict) else {}
    module = getattr(torch.nn, name)(*args, **kwargs).train(training)
    with torch.no_grad():
        for p in module.parameters():
            # So that norms' weights of 1 and biases of 0 count too.
            p.add_(0.1 * torch.randn_like(p))
        for key, b in module.named_buffers():
            if key.endswith("running_mean"):
                b.normal_()
            if key.endswith("running_var"):
                b.uniform_(0.5, 2)
    entry = {
        "module": name,
        "args": case.value(args),
        "kwargs": {k: case.value(v) for k, v in kwargs.items()},
        "training": training,
        "state": {k: case.tensor(v) for k, v in module.state_dict().items()},
        "inputs": case.value(inputs),
        "named": {k: case.value(v) for k, v in named.items()},
    }
    outputs = flat(module(*inputs, **named))
    entry["outputs"] = [case.tensor(y) for y in outputs]
    entry["after"] = {k: case.tensor(b) for k, b in module.state_dict().items() if k in dict(module.named_buffers())}
    floating = [y for y in outputs if y.requires_grad]
    params = list(module.named_parameters())
    leaves = case.leaves + [p for _, p in params]
    cotangents = [torch.randn_like(y) for y in floating]
    grads = torch.autograd.grad(floating, leaves, cotangents, allow_unused=True) if floating else []
    entry["cotangents"] = [case.tensor(d) for d in cotangents]
    stored = [None if g is None else case.tensor(g) for g in grads]
    entry["grads"] = stored[: len(case.leaves)]
    entry["param_grads"] = {k: g for (k, _), g in zip(params, stored[len(case.leaves) :])}
    return entry


STEPS = 4
OPTIMIZERS = [
    ("SGD", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
             {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.1, "maximize": True}]),
    ("Adam", [{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"lr": 0.1, "amsgrad": True}]),
    ("AdamW", [{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}, {"lr": 0.1, "maximize": True}]),
    ("RMSprop", [{"lr": 0.1}, {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
                 {"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.9, "centered": True}, {"lr": 0.1, "centered": True}]),
    ("Adagrad", [{"lr": 0.1}, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}]),
    ("Adafactor", [{}, {"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.1, "beta2_decay": -0.5, "d": 2.0, "eps": (1e-8, 1e-2)}]),
    ("Muon", [{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.8, "nesterov": False},
              {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}]),
    ("Adamax", [{"lr": 0.1}]), ("NAdam", [{"lr": 0.1}]), ("RAdam", [{"lr": 0.1}]), ("Adadelta", [{"lr": 0.5}]),
]
SHAPES = [[3, 4], [5], [], [2, 3, 2]]

SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}), ("MultiStepLR", {"milestones": [2, 5, 5, 9], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}), ("ConstantLR", {"factor": 0.5, "total_iters": 4}), ("ConstantLR", {}),
    ("LinearLR", {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 5}), ("LinearLR", {}),
    ("PolynomialLR", {"total_iters": 6, "power": 2.0}), ("PolynomialLR", {}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20}),
    ("OneCycleLR", {"max_lr": 0.5, "epochs": 4, "steps_per_epoch": 5, "anneal_strategy": "linear", "three_phase": True}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3, "cycle_momentum": False}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3, "step_size_down": 2, "mode": "triangular2", "cycle_momentum": False}),
]


def record_optimizer(name, options, number):
    case = ops.Case(f"{name}.{number}")
    torch.manual_seed(number)
    shapes = [[3, 4], [4, 3], [6, 2]] if name == "Muon" else SHAPES
    params = [torch.randn(s, requires_grad=True) for s in shapes]
    entry = {"optimizer": name, "options": {k: case.value(v) for k, v in options.items()},
             "params": [case.tensor(p) for p in params], "grads": [], "after": []}
    optimizer = getattr(torch.optim, name)(params, **options)
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.randn_like(p)
        entry["grads"].append([case.tensor(p.grad) for p in params])
        optimizer.step()
        entry["after"].append([case.tensor(p) for p in params])
    return entry


def rates(make, steps=20):
    """The rates of two groups before each step, then after a restart in the middle from the saved state the same again."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.4}, {"params": [torch.zeros(1)], "lr": 0.1}])
    scheduler = make(optimizer)
    out = []
    for i in range(steps):
        out.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        if i < steps - 1:
            scheduler.step()
    return out


def schedules():
    lrs = torch.optim.lr_scheduler
    for name, options in SCHEDULES:
        yield {"schedule": name, "options": options, "rates": rates(lambda o: getattr(lrs, name)(o, **options))}
    yield {"schedule": "LambdaLR", "options": {"lambda": "0.5 ** epoch"}, "rates": rates(lambda o: lrs.LambdaLR(o, lambda e: 0.5**e))}
    yield {"schedule": "MultiplicativeLR", "options": {"lambda": "0.9"}, "rates": rates(lambda o: lrs.MultiplicativeLR(o, lambda e: 0.9))}
    yield {
        "schedule": "SequentialLR", "options": {"milestones": [4, 9]},
        "parts": [["LinearLR", {"start_factor": 0.1, "total_iters": 4}], ["CosineAnnealingLR", {"T_max": 5}], ["ExponentialLR", {"gamma": 0.9}]],
        "rates": rates(lambda o: lrs.SequentialLR(o, [
            lrs.LinearLR(o, start_factor=0.1, total_iters=4), lrs.CosineAnnealingLR(o, T_max=5), lrs.ExponentialLR(o, gamma=0.9)], [4, 9])),
    }
    yield {
        "schedule": "ChainedScheduler", "options": {},
        "parts": [["ConstantLR", {"factor": 0.1, "total_iters": 3}], ["ExponentialLR", {"gamma": 0.9}]],
        "rates": rates(lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, factor=0.1, total_iters=3), lrs.ExponentialLR(o, gamma=0.9)])),
    }
    losses = [1, 0.9, 0.95, 0.95, 0.95, 0.95, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    for options in [{"factor": 0.5, "patience": 2}, {"factor": 0.5, "patience": 1, "cooldown": 2, "min_lr": 0.03},
                    {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1, "threshold_mode": "abs"}]:
        optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.4}, {"params": [torch.zeros(1)], "lr": 0.1}])
        scheduler = lrs.ReduceLROnPlateau(optimizer, **options)
        out = []
        for loss in losses:
            out.append([g["lr"] for g in optimizer.param_groups])
            scheduler.step(loss)
        yield {"schedule": "ReduceLROnPlateau", "options": options, "losses": losses, "rates": out}
    averaged = []
    p = torch.nn.Linear(2, 1)
    ema = torch.optim.swa_utils.AveragedModel(p, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for i in range(5):
        with torch.no_grad():
            for q in p.parameters():
                q.fill_(float(i))
        ema.update_parameters(p)
        averaged.append(next(ema.module.parameters()).flatten()[0].item())
    yield {"schedule": "EMA", "options": {"decay": 0.9}, "weights": [0, 1, 2, 3, 4], "averages": averaged}


def main(out):
    os.makedirs(out, exist_ok=True)
    source = f"PyTorch {torch.__version__}"
    cases = []
    # The generator draws inputs as it goes, from where the last case left.
    torch.manual_seed(1)
    for number, case in enumerate(module_cases()):
        try:
            cases.append(record_module(number, case[0], list(case[1]), *case[2:]))
        except (AttributeError, TypeError) as error:
            print(f"{case[0]}: {error}")
    ops.write(os.path.join(out, "modules.safetensors"))
    with open(os.path.join(out, "modules.json"), "w") as file:
        json.dump({"source": source, "cases": cases}, file)
    ops.tensors.clear()
    runs = []
    for name, many in OPTIMIZERS:
        if not hasattr(torch.optim, name):
            print(f"no {name} here")
            continue
        runs += [record_optimizer(name, options, n) for n, options in enumerate(many)]
    ops.write(os.path.join(out, "optimizers.safetensors"))
    with open(os.path.join(out, "optimizers.json"), "w") as file:
        json.dump({"source": source, "cases": runs, "schedules": list(schedules())}, file)
    print(f"{len(cases)} cases of modules, {len(runs)} of optimisers")


main(*sys.argv[1:])
