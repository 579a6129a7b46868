"""Parts of other packages that may change without notice: what would break here, and a check that each is there.

A new version of a package that fails here needs an edit at the place that is named; its own tests show whether
the edit is right.
"""

import ast
import ctypes
import importlib
import inspect
import io
import zipfile

import pytest

from tests.support import ROOT

# Underscores that are documented: of namedtuples, of the os module.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}


def test_every_private_attribute_of_another_package_is_named_here():
    named = {part for name in INTERNALS for part in name.split(".")}
    own = {path.stem for path in (ROOT / "metricgold").rglob("*.py")} | PUBLIC
    unnamed = []
    for folder in ("metricgold", "flows", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            unnamed += [f"{path}: {name}" for name in private_names(tree) if name not in named | own]
    assert not unnamed


def private_names(tree: ast.Module) -> set[str]:
    """Attributes with a leading underscore of what is not self, and private modules of other packages."""
    names = set()
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
            names.add(node.attr)
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("metricgold", "flows", "demo")):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return {name for name in names - defined if name.startswith("_") and not name.startswith("__")}


def has(path: str) -> bool:
    """Whether package.module.attribute leads somewhere."""
    module, _, name = path.rpartition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


def body_is_urllib3_s() -> bool:
    from botocore.response import StreamingBody

    body = io.BytesIO(b"")
    return StreamingBody(body, 0)._raw_stream is body


def botocore_takes_a_loader_and_a_clock() -> bool:
    from botocore.session import Session

    from metricgold.storage.s3_client import parse_time

    session, loader = Session(), object()
    session.register_component("data_loader", loader)
    factory = session.get_component("response_parser_factory")
    factory.set_parser_defaults(timestamp_parser=parse_time)
    is_ours = factory.create_parser("rest-xml")._timestamp_parser is parse_time
    return is_ours and session.get_component("data_loader") is loader


def pillow_shows_libtiff() -> bool:
    from PIL import Image

    return hasattr(ctypes.CDLL(Image.core.__file__), "TIFFSetErrorHandler")


def pillow_keeps_rows_decoded_before_an_error() -> bool:
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    with Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2])) as image:
        with pytest.raises(OSError, match="truncated"):
            image.load()
        image.tile = []
        return len(set(image.tobytes())) > 1


def zipfile_chains_the_fault_of_its_file() -> bool:
    class Dead(io.BytesIO):
        def read(self, *_: int) -> bytes:
            raise ConnectionError

    with pytest.raises(zipfile.BadZipFile) as error:
        zipfile.ZipFile(Dead(bytes(100)))
    return isinstance(error.value.__context__, ConnectionError)


def cluster_has_periodic_callbacks() -> bool:
    node = pytest.importorskip("distributed.deploy.cluster")
    return "periodic_callbacks" in inspect.getsource(node.Cluster)


def torch_storage_has_an_address() -> bool:
    import torch

    one = torch.zeros(3)
    return one.untyped_storage()._cdata == one[1:].untyped_storage()._cdata != torch.zeros(3).untyped_storage()._cdata


def torch_moves_tensors_by_one_call() -> bool:
    import torch

    average = [torch.zeros(2)]
    torch._foreach_lerp_(average, [torch.ones(2)], 0.25)
    return average[0].tolist() == [0.25, 0.25]


INTERNALS = {
    "StreamingBody._raw_stream": (body_is_urllib3_s, "botocore: downloads from s3:// read what has arrived"),
    "Session.data_loader": (botocore_takes_a_loader_and_a_clock, "botocore: listings of S3 take twice their time"),
    "PIL.Image.core.__file__": (pillow_shows_libtiff, "Pillow: libtiff writes to the terminal"),
    "ImageFile.tile": (pillow_keeps_rows_decoded_before_an_error, "Pillow: allow_truncated reads nothing"),
    "PngImagePlugin.putchunk": (lambda: has("PIL.PngImagePlugin:putchunk"), "Pillow: depth as PNG cannot be written"),
    "BadZipFile.__context__": (
        zipfile_chains_the_fault_of_its_file,
        "zipfile: a dead network counts as a broken archive",
    ),
    "Cluster.periodic_callbacks": (
        cluster_has_periodic_callbacks,
        "distributed: a worker that dies as it starts is not replaced",
    ),
    "torch._inductor.cpp_builder.get_cpp_compiler": (
        lambda: has("torch._inductor.cpp_builder:get_cpp_compiler"),
        "torch: predict.compile does not name a missing compiler",
    ),
    "torch._inductor.exc.InvalidCxxCompiler": (
        lambda: has("torch._inductor.exc:InvalidCxxCompiler"),
        "torch: predict.compile does not name a missing compiler",
    ),
    "torch._inductor.config.freezing": (
        lambda: has("torch._inductor.config:patch") and has("torch._inductor.config:freezing"),
        "torch: compiled prediction on a CPU loses its speed",
    ),
    "torch._subclasses.fake_tensor.FakeTensorMode": (
        lambda: has("torch._subclasses.fake_tensor:FakeTensorMode"),
        "torch: plan cannot count memory without allocating it",
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu": (
        lambda: has("torch:ops.aten._scaled_dot_product_flash_attention_for_cpu"),
        "torch: plan counts no attention",
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda: has("torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward"),
        "torch: plan counts no attention of the backward pass",
    ),
    "UntypedStorage._cdata": (torch_storage_has_an_address, "torch: plan counts views of a tensor as tensors"),
    "ModelSignature._is_signature_from_type_hint": (
        lambda: has("mlflow.models:ModelSignature._is_signature_from_type_hint"),
        "MLflow: drops fields of a request that it does not know, and photographs as numbers take seconds",
    ),
    "torch._foreach_lerp_": (torch_moves_tensors_by_one_call, "torch: ema_decay needs a loop over weights"),
}


@pytest.mark.parametrize("name", INTERNALS)
def test_what_is_used_of_other_packages_is_there(name):
    is_there, what_breaks = INTERNALS[name]
    assert is_there(), f"{name} has changed; {what_breaks}"
