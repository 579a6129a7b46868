"""The links of the chain that are data: latent caches, data sets, manifests, archives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metricgold.datasets import list_frames, load_manifest, own_data, read_manifest
from metricgold.download import archives_of, audit_archives
from metricgold.encode import SPLIT, source_digest, source_digests
from metricgold.params import Folders
from metricgold.registry.links import Link
from metricgold.storage import digest_file, digest_json, paths_below, read_json

Record = Mapping[str, Any]  # a version's lineage.json


def add_cache(
    before: Link, folder: Path, known: Mapping[str, Any], record: Record, folders: Folders, *, verify: bool
) -> Link:
    """The latent cache that a checkpoint was trained on, and all before it.

    known  its `digest`, of the index, and `num_frames`, as the checkpoint has them; empty where nothing does
    """
    link = before.add("cache", str(folder), known.get("digest"), num_frames=known.get("num_frames"))
    index, name = folder / "index.json", folder.name
    scenes: dict[str, str | None] = {}
    if not index.is_file():
        link.notes.append(f"not here; `dvc pull {folder}` or `metricgold encode {name}` brings it")
    elif link.expect(link.digest, found := digest_file(index), f"{folder} is another cache by now"):
        link.digest, identity = found, read_json(index)["identity"]
        name, scenes = identity["dataset"], identity["scenes"]
        link.facts |= {key: identity[key] for key in ("encode", "log_depth", "vae") if key in identity}
        if verify:
            expect_shards(link, folder)
    add_dataset(link, name, scenes, record.get("datasets", {}).get(name, {}), folders, verify=verify)
    return link


def expect_shards(link: Link, folder: Path) -> None:
    """Every shard of a cache must have the sha256 of the index."""
    shards = read_json(folder / "index.json")["shards"]
    for path, shard in zip(paths_below(folder, (shard["file"] for shard in shards)), shards, strict=True):
        if path.is_file():
            link.expect(shard["sha256"], digest_file(path), f"{path} is not what was encoded")
        else:
            link.breaks(f"{path} is gone", shard["sha256"])


def add_dataset(
    before: Link,
    name: str,
    scenes: Mapping[str, str | None],
    known: Mapping[str, Any],
    folders: Folders,
    *,
    verify: bool,
) -> None:
    """The data set that a cache was encoded from, its manifest and its archives.

    scenes  digest of each scene's source, by the cache; known: what the version's lineage.json has of the data set
    """
    raw = folders.raw(name)
    link = before.add("data set", name, digest_json(dict(scenes)) if scenes else None, num_scenes=len(scenes) or None)
    link.facts |= {key: known[key] for key in ("licence", "role") if key in known}
    archives = archives_of(raw)
    if not archives:
        link.notes.append(f"not here; `dvc repro download` or `metricgold download {name}` brings {raw}")
        if not known.get("archives"):
            link.breaks(f"nothing says which archives it came from: {raw}/ledger.json lists none", "its archives")
    elif scenes:
        expect_sources(link, raw, archives, scenes, verify=verify)
    if not own_data.has_statement(raw):
        add_manifest(link, name, raw, known.get("manifest"))
    add_archives(link, raw, archives, known.get("archives", {}), verify=verify)


def expect_sources(
    link: Link, raw: Path, archives: Mapping[str, Any], scenes: Mapping[str, str | None], *, verify: bool
) -> None:
    """The scenes of a cache must have been read from what the ledger lists now.

    Frames that no archive vouches for, of own data or put there by hand, are read themselves where they are here.
    """
    found = {scene: source_digest(archives, scene) for scene in scenes}
    wrong = [scene for scene, digest in scenes.items() if digest and digest != found[scene]]
    if wrong or verify:
        try:
            listing = list_frames(link.name, raw, split=SPLIT)
            digest_of = source_digests(raw, listing)
            found |= {scene: digest_of(scene) for scene in scenes if scene in listing.scenes}
        except (ValueError, OSError) as error:
            if own_data.has_statement(raw):
                link.notes.append(f"its files are not here: {error}")
                return
            if verify:
                link.notes.append(str(error))
    for scene, digest in scenes.items():
        if not link.expect(digest, found[scene], f"{raw}: scene {scene} is not what the cache was encoded from"):
            return


def add_manifest(before: Link, name: str, raw: Path, digest: str | None) -> None:
    """The manifest that decided what of a data set was fetched: the copy in its raw folder, else the project's."""
    path, ledger = raw / "manifest.yaml", raw / "ledger.json"
    if ledger.is_file():
        digest = read_json(ledger).get("manifest_sha256", digest)
    link = before.add("manifest", str(path) if path.is_file() else f"data_manifests/{name}.yaml", digest)
    try:
        manifest = read_manifest(path) if path.is_file() else load_manifest(name)
    except ValueError as error:
        link.breaks(str(error), digest or "a manifest")
        return
    link.facts |= {"licence": manifest.licence.name, "role": manifest.role, "mirrors": list(manifest.mirrors)}
    link.expect(digest, manifest.decisive_digest, "it names other members or splits than were downloaded")


def add_archives(
    before: Link, raw: Path, archives: Mapping[str, Any], known: Mapping[str, str], *, verify: bool
) -> None:
    """The archives that a data set came from: one link for all, each with its digest; --verify reads their members."""
    of_each = {path: {"digest": entry["members_sha256"]} for path, entry in archives.items()}
    of_each = of_each or {path: {"digest": digest} for path, digest in known.items()}
    digest = digest_json({path: archive["digest"] for path, archive in of_each.items()})
    link = before.add("archives", f"{len(of_each)} of {raw}", digest, archives=of_each)
    for path, archive in of_each.items():
        link.expect(known.get(path), archive["digest"], f"{path} is another than when the model was registered")
    if not (archives and verify) or own_data.has_statement(raw):
        return
    num_gone = 0
    for audited in audit_archives(raw, archives):
        num_gone += audited.num_gone
        link.num_compared += audited.num_hashed
        of_each[audited.path] |= dict(audited.checksums)
        link.fault = link.fault or audited.fault
    if num_gone:
        link.notes.append(f"{num_gone} of their files are not here")
