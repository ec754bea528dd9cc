"""Writes the public names of PyTorch that docs/from-pytorch.md tells of: python make-names.py OUT_FILE. Needs torch."""
import json
import sys

import torch
import torch.autograd.functional
import torch.func
import torch.optim.swa_utils
import torch.utils.data

SPACES = {
    "torch.Tensor": torch.Tensor,
    "torch": torch,
    "torch.nn": torch.nn,
    "torch.nn.functional": torch.nn.functional,
    "torch.nn.init": torch.nn.init,
    "torch.nn.utils": torch.nn.utils,
    "torch.nn.Module": torch.nn.Module,
    "torch.optim": torch.optim,
    "torch.optim.Optimizer": torch.optim.Optimizer,
    "torch.optim.lr_scheduler": torch.optim.lr_scheduler,
    "torch.optim.swa_utils": torch.optim.swa_utils,
    "torch.utils.data": torch.utils.data,
    "torch.autograd": torch.autograd,
    "torch.autograd.functional": torch.autograd.functional,
    "torch.func": torch.func,
}
names = {"version": torch.__version__}
for space, of in SPACES.items():
    # Modules and what they import from typing are no names of PyTorch's.
    names[space] = [
        name
        for name in sorted(dir(of))
        if not name.startswith("_")
        and type(getattr(of, name, None)).__name__ != "module"
        and getattr(getattr(of, name, None), "__module__", None) not in ("typing", "collections", "functools", "builtins_typing")
    ]
with open(sys.argv[1], "w") as file:
    json.dump(names, file, separators=(",", ":"))
