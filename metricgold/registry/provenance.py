"""The chain behind a depth file: version, checkpoint, params, code, caches, data sets, manifests, archives.

Followed as far as records say: those in the files themselves, the version's lineage.json, the checkpoint's own, a
cache's index, a data set's ledger. What is here is compared with them; what is not is known by its record alone, so
that a clone without data can answer too.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.model import digest_model, vae_digest
from metricgold.params import Folders
from metricgold.predict import ImageClaims, read_claims
from metricgold.registry.data_links import Record, add_cache
from metricgold.registry.links import Link
from metricgold.registry.mlflow_client import LINEAGE, find_version, named_version, open_client, read_record
from metricgold.registry.pyfunc import download_version
from metricgold.registry.versions import first_version
from metricgold.storage import digest_file, digest_folder, digest_json, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def trace(uri: str, *, verify: bool = False, folders: Folders = Folders()) -> Link:  # noqa: B008 - frozen
    """The chain that leads to `uri`, the newest link first.

    uri     an output of `metricgold predict` in a folder or on S3, <folder>/receipt.jsonl#<input>, a version
            (models:/metricgold@champion), a checkpoint's folder, or a latent cache's
    verify  compute every digest again whose bytes are here or can be fetched: those of weights, shards and raw files

    ValueError for what is none of these.
    """
    folder = Path(uri)
    if uri.startswith("models:/"):
        return add_version(Link("", uri), read_version(*named_version(uri), verify=verify), folders, verify=verify)
    if (folder / "model_index.json").is_file():
        return trace_checkpoint(folder, folders, verify=verify)
    root = Link("", uri)
    if (folder / "index.json").is_file():
        return add_cache(root, folder, {}, {}, folders, verify=verify)
    if folder.is_dir():
        raise ValueError(f"{uri}: a folder, expected a checkpoint or a latent cache; of a job name a file of it")
    return trace_image(read_claims(uri), folders, verify=verify)


# Depth files


def trace_image(claims: ImageClaims, folders: Folders, *, verify: bool) -> Link:
    """From the depth of one image on: the file, its side-car and its row must say the same."""
    link = Link("depth file", claims.depth_file or claims.input, claims.first("sha256"), {"input": claims.input})
    if claims.depth_file is None:
        link.notes.append("the depth file is not here; its records are")
    for place, facts in claims.said.items():
        link.expect(facts.get("sha256"), claims.sha256, f"its bytes are not those that {place} names")
        for name in ("model_digest", "model", "params", "input_tag"):
            why = f"{place} names another {name} than {next(iter(claims.said))}"
            link.expect(claims.first(name), facts.get(name), why)
    link.facts |= {
        name: claims.first(name) for name in ("model", "model_digest", "input_tag", "identity", "params", "focal_px")
    }
    model, digest = claims.first("model"), claims.first("model_digest")
    if digest is None:
        link.breaks("neither the file nor a side-car or receipt says which model made it", "model_digest")
    else:
        add_model(link, str(model), digest, folders, verify=verify)
    return link


def add_model(before: Link, model: str, digest: str, folders: Folders, *, verify: bool) -> None:
    """The model of a digest: its version, else the project's checkpoint, else the chain ends."""
    name, _, number = model.partition("/")
    registered = named = None
    try:
        registered = read_version_of(digest, verify=verify)
        named = read_version(name, number, verify=False) if number and registered is None else None
    except ValueError as error:
        before.notes.append(str(error))
    if registered is not None:
        add_version(before, registered, folders, verify=verify)
        return
    here = digest_model(folders.model) if (folders.model / "model_index.json").is_file() else None
    if named is not None or here != digest:
        link = before = before.add("version", model, digest)
        if named is not None:
            link.breaks(f"{model} is of another model", digest, named.digest)
        else:
            found = f"{folders.model} is {here}" if here else "nothing"
            link.breaks("no registered version and no checkpoint here is this model", digest, found)
    if here == digest:
        before.made_from.append(trace_checkpoint(folders.model, folders, verify=verify))


# Versions


@dataclass
class Registered:
    """What the registry has of a version. folder: its checkpoint on this disk; None where it was not fetched."""

    name: str
    digest: str
    facts: dict[str, Any]
    tags: dict[str, str]
    record: Record = field(default_factory=dict)
    folder: Path | None = None
    missing: str = ""


def read_version(name: str, which: str, *, verify: bool) -> Registered:
    """A version by its number or alias. ValueError where there is none, or no registry that can be asked."""
    if not has_registry():
        raise ValueError("there is no registry here: neither mlflow.db nor MLFLOW_TRACKING_URI")
    with open_client() as client:
        return describe(client, find_version(client, which, name), verify=verify)


def read_version_of(digest: str, *, verify: bool) -> Registered | None:
    """The version of a model's bytes; None where there is none. ValueError where the registry cannot be asked."""
    if not has_registry():
        return None
    with open_client() as client:
        version = first_version(client, digest)
        return None if version is None else describe(client, version, verify=verify)


def has_registry() -> bool:
    """Whether there is a registry to ask; looking for one must not make it."""
    return bool(environ.get("MLFLOW_TRACKING_URI")) or Path("mlflow.db").is_file()


def describe(client: "MlflowClient", version: "ModelVersion", *, verify: bool) -> Registered:
    """All that the chain needs of a version; its weights are fetched if they are to be hashed."""
    version = client.get_model_version(version.name, version.version)  # a search has no aliases
    registered = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")
    facts = {"aliases": sorted(version.aliases), "run_id": version.run_id, "registered": registered}
    described = Registered(
        f"{version.name}/{version.version}", version.tags.get("model_digest", ""), facts, version.tags
    )
    described.record = read_record(client, version)
    if verify or not described.record:
        try:
            described.folder = download_version(client.get_model_version_download_uri(version.name, version.version))
        except (OSError, ValueError) as error:
            described.missing = str(error)
    return described


def add_version(before: Link, registered: Registered, folders: Folders, *, verify: bool) -> Link:
    """A version and all before it: the code and the params that it was registered with, its checkpoint."""
    record, digest = registered.record, registered.digest
    link = before.add("version", registered.name, digest, **registered.facts)
    link.expect(before.facts.get("model_digest"), digest, f"{registered.name} is of another model")
    link.expect(record.get("model", {}).get("digest"), digest, "its lineage.json is of another model")
    noted = registered.tags.get("lineage_digest")
    link.expect(noted, digest_json(record) if record else None, "its lineage.json is not the one that was registered")
    add_code(link, record.get("code") or code_of(registered.tags))
    folder = str(registered.folder) if registered.folder else None
    checkpoint = link.add("checkpoint", f"models:/{registered.name}", digest, folder=folder)
    if registered.missing:
        checkpoint.breaks(f"its files cannot be had: {registered.missing}", digest)
    if registered.folder and verify:
        found = digest_model(registered.folder)
        checkpoint.expect(digest, found, f"the files in {registered.folder} are not those that were registered")
    add_origins(checkpoint, registered.folder, registered, folders, verify=verify)
    return link


def add_code(before: Link, code: Mapping[str, Any]) -> None:
    """The commit that a version was made with."""
    commit = code.get("commit")
    link = before.add("code", f"commit {commit[:12]}" if commit else "unknown", commit, dirty=code.get("dirty"))
    if commit is None:
        link.breaks("nothing says which code made it", "a commit")
        return
    if code.get("dirty"):
        link.notes.append("tracked files differed from it")
    words = ["git", "cat-file", "-t", commit]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        link.notes.append("git is not here to look for it")
        return
    if "not a git repository" in answer.stderr:
        link.notes.append("this folder is no git checkout to look for it")
    else:
        link.expect(
            "commit", answer.stdout.strip() or "nothing", f"this checkout lacks {commit}; `git fetch` may bring it"
        )


def code_of(tags: Mapping[str, str]) -> dict[str, Any]:
    """The code of a version that was registered without a lineage.json, by its tags."""
    return {"commit": tags.get("git_sha"), "dirty": tags.get("git_dirty") == "true"}


# Checkpoints


def trace_checkpoint(folder: Path, folders: Folders, *, verify: bool) -> Link:
    """From a checkpoint's folder on; the version of its bytes, if there is one, says more of it."""
    digest = digest_model(folder)
    link, registered = Link("checkpoint", str(folder), digest), None
    try:
        registered = read_version_of(digest, verify=False)
    except ValueError as error:
        link.notes.append(str(error))
    if registered is None:
        link.notes.append("not registered: no version says with which code and params it was made")
    else:
        link.facts["version"] = registered.name
        link.num_compared += 1
        add_code(link, registered.record.get("code") or code_of(registered.tags))
    add_origins(link, folder, registered, folders, verify=verify)
    return link


def add_origins(
    link: Link, folder: Path | None, registered: Registered | None, folders: Folders, *, verify: bool
) -> None:
    """What a checkpoint was made from: params, backbone, VAE for depth, latent caches.

    As its own lineage.json has it, where its folder is here, else that of its version; where both are here they agree.
    """
    record: Record = registered.record if registered else {}
    own = read_json(folder / LINEAGE) if folder and (folder / LINEAGE).is_file() else {}
    of_training = {name: {"digest": cache["index"], **cache} for name, cache in own.get("latents", {}).items()}
    for name, cache in record.get("caches", {}).items() if own else ():
        found = of_training.get(name, {}).get("digest")
        link.expect(cache["digest"], found or "nothing", f"its own lineage.json names another cache of {name}")
    add_params(link, own, record, registered.tags.get("params_digest") if registered else None)
    add_backbone(link, own.get("backbone") or record.get("backbone") or {}, folders, verify=verify)
    depth_vae = own.get("depth_vae") or record.get("depth_vae")
    if depth_vae:
        add_depth_vae(link, depth_vae, folder, folders, verify=verify)
    caches = of_training or record.get("caches", {})
    if not caches:
        link.breaks("neither it nor a version says which caches it was trained on", f"{LINEAGE} with their digests")
    for name, cache in caches.items():
        added = add_cache(link, folders.latents(name), cache, record, folders, verify=verify)
        encoder = (depth_vae or {}).get("encoder")
        added.expect(encoder, added.facts.get("vae"), "it was encoded by another VAE than the model's")


def add_params(before: Link, own: Mapping[str, Any], record: Record, digest: str | None) -> None:
    """The params that a checkpoint was trained with, and those that its version was registered with."""
    params = record.get("params") or {name: own[name] for name in ("train", "log_depth") if name in own}
    if not params:
        before.add("params", "unknown").breaks("nothing says with which params it was trained", "train")
        return
    link = before.add("params", "params.yaml", digest or digest_json(params), **params)
    if record.get("params"):
        link.expect(digest, digest_json(params), "they are not those of the version's params_digest")
    of_range = "canonical_depth" if own.get("log_depth", {}).get("canonical") else "log_depth"
    for trained, section in (("train", "train"), ("log_depth", of_range)):
        for key, value in sorted(own.get(trained, {}).items()):
            found = params.get(section, {}).get(key)
            link.expect(value, found, f"{section}.{key} was another when the model was trained")


def add_backbone(before: Link, known: Mapping[str, Any], folders: Folders, *, verify: bool) -> None:
    """The backbone that training started from."""
    facts = {key: known[key] for key in ("source", "revision", "version") if key in known}
    link = before.add("backbone", str(folders.backbone), known.get("digest"), **facts)
    if not known.get("digest"):
        link.breaks("nothing says which backbone the training started from", "its digest")
    elif not (folders.backbone / "backbone.json").is_file():
        link.notes.append(f"not here; `dvc pull {folders.backbone}` or `metricgold backbone` brings it")
    elif verify:
        link.expect(known["digest"], digest_folder(folders.backbone), f"{folders.backbone} is another by now")


def add_depth_vae(
    before: Link, known: Mapping[str, Any], checkpoint: Path | None, folders: Folders, *, verify: bool
) -> None:
    """The VAE that decodes the model's depth, trained from the backbone's."""
    folder = folders.depth_vae
    link = before.add("depth VAE", str(folder), digest_json(dict(known)), backbone_vae=known.get("backbone_vae"))
    link.facts |= {"encoder": known.get("encoder"), "params": known.get("depth_vae")}
    is_here = (folder / "depth_vae.json").is_file()
    if is_here:
        link.expect(link.digest, digest_json(read_json(folder / "depth_vae.json")), f"{folder} is another by now")
    else:
        link.notes.append(f"not here; `dvc pull {folder}` or `metricgold depth-vae` brings it")
    if verify and checkpoint is not None and (checkpoint / WEIGHTS).is_file():
        why = "the checkpoint's VAE has another encoder"
        link.expect(known.get("encoder"), vae_digest(checkpoint), why)
        if is_here and not link.fault and (known.get("depth_vae") or {}).get("num_steps"):
            weights = [digest_file(place / WEIGHTS) for place in (checkpoint, folder)]
            link.expect(weights[0], weights[1], f"{folder} has other weights than the checkpoint")
    if verify and (folders.backbone / "vae").is_dir():
        found = digest_folder(folders.backbone / "vae")
        link.expect(known.get("backbone_vae"), found, f"{folders.backbone}/vae is not what it was trained from")
