"""Finds pickles and what loads them, and runs neither: opcodes and syntax are only looked at."""

import ast
import pickletools  # takes bytes apart, and loads nothing
import re

UNSAFE = re.compile(rb"\b(pickle|cloudpickle|dill|joblib|marshal|shelve)\b|yaml\.(unsafe_)?load\(|weights_only=False")
ALLOWED = f"allow_pickle={True}"  # the option by which NumPy loads them


def is_pickle(data):
    """Whether bytes are a whole program of pickle's machine that calls something."""
    calls = False
    try:
        for opcode, _, _ in pickletools.genops(data):
            calls |= opcode.name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD")
    except Exception:
        return False
    return calls


def loads_pickles(tree):
    """Modules that unpickle, functions of others that may, and options that allow it."""
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and modules & {alias.name.partition(".")[0] for alias in node.names}:
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in modules:
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            unsafe = called in ("torch.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
            if called == "yaml.load":  # ours derives from yaml.SafeLoader
                unsafe = [ast.unparse(one) for one in node.args[1:]] != ["_Loader"]
            if unsafe or ALLOWED in ast.unparse(node):
                return True
    return False
