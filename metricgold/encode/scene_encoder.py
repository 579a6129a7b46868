"""Raw frames to latents: reader -> views of a size -> VAE -> shards. Scene by scene, a killed run goes on.

Frames are decoded ahead of the VAE, in processes where that is worth their start, and a shard is written while the
next one is encoded. Whole scenes may be encoded by other processes (metricgold.predict.dask_cluster). None of this
changes a byte, as long as the devices are of one kind.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from metricgold.datasets import (
    IN_NO_SPLIT,
    Frame,
    FrameRef,
    Listing,
    list_frames,
    own_data,
    read_manifest,
    scene_splits,
)
from metricgold.encode.crops import MARK, open_processes, read_views
from metricgold.log_depth import LogDepth
from metricgold.model import (
    decode_log_depth,
    encode_log_depth,
    encode_rgb,
    filled_log_depth,
    latent_valid_mask,
    load_vae,
    rgb_to_tensor,
    vae_digest,
    vae_factor,
)
from metricgold.params import Encode, LogDepthRange
from metricgold.shards import (
    INDEX,
    LatentFrame,
    find_shard,
    is_part_of,
    is_whole,
    read_record,
    record_path,
    shard_path,
    write_index,
    write_record,
    write_shard,
)
from metricgold.storage import digest_json, only_writer, read_json, remove

log = logging.getLogger(__name__)

SPLIT = "train"
NUM_THREADS = (
    2  # that decode ahead of the VAE: as fast as two processes; with more of them Python lets one run at a time
)
MAX_PROCESSES = 16
WORTH_PROCESSES_BYTES = 100_000_000  # of a shard's files: two seconds of decoding, processes take one to start


def encode(
    dataset: str,
    params: Encode,
    log_depth: LogDepthRange,
    raw: Path,
    backbone: Path,
    out: Path,
    *,
    device: str = "",
    executor: Executor | None = None,
) -> Path:
    """Encode the training frames of one data set; returns the index.

    A frame that cannot be read or has no valid latent is dropped and counted by reason. `executor` encodes whole
    scenes elsewhere, in processes that see the same folders. Raises ValueError when the size or the dtype does not
    suit the VAE or nothing is left, BlockingIOError when another run writes to `out`, OSError when the disk is full:
    the next run goes on.
    """
    raw, backbone, out = (Path(path).absolute() for path in (raw, backbone, out))
    listing = list_frames(dataset, raw, split=SPLIT)
    by_scene = groupby(sorted(listing.frames, key=lambda ref: ref.scene), key=lambda ref: ref.scene)
    refs = {scene: list(found) for scene, found in by_scene}
    digest_of = _source_digests(raw)
    scenes = sorted({*training_scenes(listing), *_archived_scenes(raw)})
    log.info("%s: %d frames to be in the cache", dataset, len(listing.frames))
    with open_encoder(dataset, params, log_depth, backbone, out, device=device) as encoder:
        jobs = [(scene, refs.get(scene, []), digest_of(scene), listing.gaps_of(scene)) for scene in scenes]
        done = encoder.encode_elsewhere(executor, jobs) if executor else map(encoder.encode_job, jobs)
        with tqdm(total=len(listing.frames), desc=f"encode {dataset}", unit="frame", disable=None) as bar:
            for scene in done:
                bar.update(len(refs.get(scene, [])))
        return encoder.finish()


def training_scenes(listing: Listing) -> list[str]:
    """Scenes of a listing of the split; those that merely lie beside them are in no split."""
    in_split = {ref.scene for ref in listing.frames}
    return [scene for scene in listing.scenes if scene in in_split or listing.gaps_of(scene).keys() - {IN_NO_SPLIT}]


def _archives(raw: Path) -> dict[str, dict[str, Any]] | None:
    ledger = raw / "ledger.json"
    return read_json(ledger)["archives"] if ledger.is_file() else None


def _archived_scenes(raw: Path) -> set[str]:
    """Training scenes for which archives were fetched, whether a frame was in them or not."""
    archives = _archives(raw) or {}
    named = {scene for entry in archives.values() for scene in entry.get("scenes") or ()}
    if not named or not (raw / "manifest.yaml").is_file():
        return set()
    splits_of = scene_splits(read_manifest(raw / "manifest.yaml"), raw)
    return {scene for scene in named if SPLIT in splits_of(scene)}


def _source_digests(raw: Path) -> Callable[[str], str | None]:
    """A function scene -> digest of what it is read from: archives, what a team states about its own data, or both."""
    archives = _archives(raw)
    if not own_data.has_statement(raw):
        return lambda scene: source_digest(archives, scene)
    stated = own_data.digest(raw)
    if archives is None:
        return lambda _scene: stated
    return lambda scene: digest_json([stated, source_digest(archives, scene)])


def source_digest(archives: Mapping[str, Mapping[str, Any]] | None, scene: str) -> str | None:
    """Digest of what a scene is read from: the members of the ledger's archives that hold it.

    An archive that names no scenes belongs to all of them. None without a ledger.
    """
    if archives is None:
        return None
    holding = {path: entry for path, entry in archives.items() if scene in (entry.get("scenes") or [scene])}
    return digest_json({path: entry["members_sha256"] for path, entry in holding.items()})


@contextmanager
def open_encoder(
    dataset: str, params: Encode, log_depth: LogDepthRange, backbone: Path, out: Path, *, device: str = ""
) -> Iterator["SceneEncoder"]:
    """Open a cache for writing; what an encode of other params or another VAE left there is deleted.

    Until `finish` the cache has no index. Errors as in encode.
    """
    with only_writer(out), ExitStack() as stack:
        encoder = SceneEncoder(
            dataset,
            params,
            log_depth,
            backbone,
            out,
            vae_digest(backbone),
            device,
            stack,
            min(_num_cores(), MAX_PROCESSES),
        )
        encoder.clear()
        yield encoder
        encoder.wait()


Job = tuple[str, Sequence[FrameRef], str | None, Mapping[str, int]]  # arguments of SceneEncoder.encode_scene


class SceneEncoder:
    """A cache open for writing, made by open_encoder.

    When finished it holds the scenes for which encode_scene was called or has_scene was True, in order of their
    names, whatever the order of the calls.
    """

    def __init__(
        self,
        dataset: str,
        params: Encode,
        log_depth: LogDepthRange,
        backbone: Path,
        out: Path,
        vae_sha256: str,
        device: str,
        stack: ExitStack,
        num_processes: int,
    ) -> None:
        self.made_by = (dataset, params, log_depth, backbone, Path(out), vae_sha256, device)
        self.params, self.log_depth, self.out = params, LogDepth(**log_depth.model_dump()), Path(out)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = load_vae(backbone, dtype=getattr(torch, params.dtype)).to(device).eval()
        self._check_size()
        self.measured = self._check_dtype(backbone, device)
        # Everything that all latents depend on. Batch size is part of it: it can change the last bit.
        self.common = {
            "dataset": dataset,
            "split": SPLIT,
            "encode": params.model_dump(exclude={"max_dtype_error"}),
            "log_depth": log_depth.model_dump(),
            "vae": vae_sha256,
        }
        self.records: dict[str, dict[str, Any]] = {}
        self._stack, self._num_processes = stack, num_processes
        self._threads = stack.enter_context(ThreadPoolExecutor(NUM_THREADS))
        self._processes: Executor | None = None
        self._writer = stack.enter_context(_Writer(self.out))

    def _check_size(self) -> None:
        height, width, factor = self.params.height, self.params.width, vae_factor(self.vae)
        if height % factor or width % factor:
            raise ValueError(
                f"encode.height x encode.width must be multiples of the VAE's {factor}, got {height} x {width}"
            )

    def _check_dtype(self, backbone: Path, device: str) -> dict[str, float]:
        params = self.params
        if params.dtype == "float32":
            return {}
        exact = load_vae(backbone).to(device).eval()
        error = dtype_error(self.vae, exact, self.log_depth, params.height, params.width)
        log.info("%s instead of float32 changes decoded depth by %.2g on average", params.dtype, error)
        if not error <= params.max_dtype_error:  # NaN too
            raise ValueError(
                f"encode.dtype {params.dtype} changes depth by {error:.2g} on average, expected at most "
                f"encode.max_dtype_error {params.max_dtype_error:g}; float32 is exact"
            )
        return {"dtype_error": float(f"{error:.2g}")}

    def clear(self) -> None:
        """Remove the index, and what has another identity."""
        remove(self.out / INDEX)
        for path in _files(self.out):
            if not is_part_of(path, self.common):
                remove(path)

    def has_scene(self, scene: str, source: str | None) -> bool:
        """Whether the scene, read from what has this digest, is here undamaged; its raw data is not needed."""
        record = read_record(self.out, scene)
        if record is None or record["identity"] != self._identity(scene, source) or not is_whole(self.out, record):
            return False
        self.records[scene] = record
        return True

    def encode_scene(
        self, scene: str, refs: Sequence[FrameRef], source: str | None, gaps: Mapping[str, int] | None = None
    ) -> None:
        """Encode what is missing of a scene; that it is whole is recorded before `wait` returns.

        refs: all its frames of the split, maybe none; source: digest of what they are read from; gaps: by reason,
        how many frames its listing left out. What could not be written is raised here, by a later call or by `wait`.
        """
        self._check_names(refs)
        identity, size = self._identity(scene, source), self.params.frames_per_shard
        refs = sorted(refs, key=lambda ref: ref.name)
        groups = [refs[start : start + size] for start in range(0, len(refs), size)]
        shards = self._find_shards(scene, identity, groups)
        for number, group in enumerate(groups):
            if shards[number] is None:
                frames, dropped = self._encode_frames(group)
                self._writer.submit(
                    self._write_shard, shards, number, scene, frames, dropped, identity | _frames(group)
                )
        self._writer.submit(self._write_record, scene, identity, gaps or {}, shards)

    def encode_job(self, job: Job) -> str:
        """encode_scene; answers the scene."""
        self.encode_scene(*job)
        return job[0]

    def encode_elsewhere(self, executor: Executor, jobs: Sequence[Job]) -> Iterator[str]:
        """encode_scene by an executor's processes, which see the same folders; scenes as they are done."""
        coming = [executor.submit(_encode_here, self.made_by, job) for job in jobs]
        try:
            for future in as_completed(coming):
                scene, record = future.result()
                if read_record(self.out, scene) != record:
                    raise ValueError(f"{self.out}: scene {scene} was encoded elsewhere and is not here: another disk?")
                self.records[scene] = record
                yield scene
        finally:
            for future in coming:
                future.cancel()

    def wait(self) -> None:
        """Until everything is written; raises what could not be."""
        self._writer.wait()

    def finish(self) -> Path:
        """Delete what belongs to none of the scenes and write the index. ValueError when there is no frame."""
        self.wait()
        wanted = {record_path(self.out, scene) for scene in self.records}
        wanted |= {self.out / shard["file"] for record in self.records.values() for shard in record["shards"]}
        for path in _files(self.out):
            if path not in wanted:
                remove(path)
        with _telling_of_a_full_disk(self.out):
            index = write_index(self.out, self.common, self.records, self.measured)
        log.info("%s: %d scenes in the cache", self.common["dataset"], len(self.records))
        return index

    # Parts of encode_scene

    def _identity(self, scene: str, source: str | None) -> dict[str, Any]:
        return self.common | {"scene": scene, "source": source}

    def _check_names(self, refs: Sequence[FrameRef]) -> None:
        marked = [ref.name for ref in refs if MARK in ref.name]
        if marked and self.params.views > 1:
            raise ValueError(
                f"frame {marked[0]}: {MARK} in a name is kept for views; expected another, or encode.views 1"
            )

    def _find_shards(
        self, scene: str, identity: dict[str, Any], groups: Sequence[Sequence[FrameRef]]
    ) -> list[dict[str, Any] | None]:
        """The scene's whole shards; where one is missing or damaged, None, and neither it nor a record is left."""
        record = read_record(self.out, scene) or {"shards": []}
        digests = {shard["file"]: shard["sha256"] for shard in record["shards"]}
        shards = []
        for number, group in enumerate(groups):
            path = shard_path(self.out, scene, number)
            shards.append(find_shard(path, identity | _frames(group), digests.get(path.name)))
            if shards[-1] is None:
                remove(path)
        # Last, for it alone tells a damaged shard from a whole one.
        if None in shards:
            remove(record_path(self.out, scene))
        return shards

    def _write_shard(self, shards, number: int, scene: str, frames, dropped, identity: dict[str, Any]) -> None:
        path = shard_path(self.out, scene, number)
        shards[number] = write_shard(path, frames, dropped, identity)
        # Hundreds of small scenes would drown a log; their records name each of them.
        level = logging.INFO if len(frames) >= self.params.frames_per_shard else logging.DEBUG
        log.log(level, "%s: %s, %d frames", self.common["dataset"], path.name, len(frames))

    def _write_record(self, scene: str, identity: dict[str, Any], gaps: Mapping[str, int], shards) -> None:
        self.records[scene] = write_record(self.out, scene, identity, gaps, shards)

    def _encode_frames(self, refs: Sequence[FrameRef]) -> tuple[list[LatentFrame], list[str]]:
        frames, dropped = [], []
        batch: list[Frame] = []
        for ref, views in zip(refs, self._read_ahead(refs), strict=True):
            if isinstance(views, str):
                log.warning("dropped %s: %s", ref.name, views)
                dropped.append("unreadable")
                continue
            batch += views
            while len(batch) >= self.params.batch_size:
                frames += _encode_batch(self.vae, batch[: self.params.batch_size], self.log_depth)
                batch = batch[self.params.batch_size :]
        frames += _encode_batch(self.vae, batch, self.log_depth) if batch else []
        kept = [frame for frame in frames if frame.latent_mask.any()]
        return kept, dropped + ["no valid latent"] * (len(frames) - len(kept))

    def _read_ahead(self, refs: Sequence[FrameRef]) -> Iterator[list[Frame] | str]:
        """Views of each frame, in order, decoded two batches ahead of the VAE; what is wrong with one that fails."""
        params, readers = self.params, self._readers(refs)
        coming: deque[Future[list[Frame] | str]] = deque()
        try:
            for ref in refs:
                coming.append(readers.submit(read_views, ref, params))
                if len(coming) * params.views > 2 * params.batch_size:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        except BrokenExecutor as error:
            raise OSError("a process that decodes frames was ended from outside, for want of memory?") from error

    def _readers(self, refs: Sequence[FrameRef]) -> Executor:
        """Threads, until a shard comes that is worth processes."""
        if self._processes is None and self._num_processes > NUM_THREADS and _num_bytes(refs) >= WORTH_PROCESSES_BYTES:
            self._processes = self._stack.enter_context(open_processes(self._num_processes))
        return self._processes or self._threads


class _Writer:
    """One thread that writes while the next shard is encoded; after a failure it writes nothing more."""

    def __init__(self, out: Path) -> None:
        self._out, self._thread = out, ThreadPoolExecutor(1)
        self._coming: deque[Future[None]] = deque()
        self._has_failed = False

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown()

    def submit(self, write: Callable[..., None], *args) -> None:
        # Behind one shard and its record: not more of them in memory.
        self._wait_for(2)
        self._coming.append(self._thread.submit(self._run, write, args))

    def wait(self) -> None:
        self._wait_for(0)

    def _wait_for(self, most: int) -> None:
        with _telling_of_a_full_disk(self._out):
            while len(self._coming) > most:
                self._coming.popleft().result()

    def _run(self, write: Callable[..., None], args: Sequence[Any]) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        write(*args)
        self._has_failed = False


@contextmanager
def _telling_of_a_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = "disk full; what is finished is kept: make room and run it again"
        raise OSError(error.errno, said, str(out)) from error


_ENCODING = Lock()


def _encode_here(made_by: tuple, job: Job) -> tuple[str, dict[str, Any]]:
    """A scene and its record, for an encoder in another process; one scene at a time."""
    with _ENCODING:
        encoder = _encoder_of(*made_by)
        try:
            encoder.encode_scene(*job)
            encoder.wait()
        except BaseException:
            _encoder_of.cache_clear()  # its writer writes no more
            raise
        return job[0], encoder.records[job[0]]


@lru_cache(maxsize=1)
def _encoder_of(*made_by) -> SceneEncoder:
    # Kept from scene to scene. It holds no lock: the process that asks does.
    # Threads decode, since a worker of Dask must not start processes.
    return SceneEncoder(*made_by, ExitStack(), num_processes=1)


def _files(out: Path) -> list[Path]:
    return sorted(out.iterdir()) if out.is_dir() else []


def _frames(refs: Sequence[FrameRef]) -> dict[str, str]:
    """What a shard's identity has beyond its scene's."""
    return {"frames": digest_json([ref.name for ref in refs])}


def _num_bytes(refs: Sequence[FrameRef]) -> int:
    """Roughly what is to be read."""
    return sum(path.stat().st_size for ref in refs for path in (ref.rgb_path, ref.depth_path) if path.is_file())


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@torch.no_grad()
def _encode_batch(vae: AutoencoderKL, frames: Sequence[Frame], log_depth: LogDepth) -> list[LatentFrame]:
    rgb = rgb_to_tensor(np.stack([frame.rgb for frame in frames]))
    filled = [filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask) for frame in frames]
    rgb_latents = encode_rgb(vae, rgb.to(vae.device))
    depth_latents = encode_log_depth(vae, torch.from_numpy(np.stack(filled)).to(vae.device))
    return [
        LatentFrame(
            rgb_latent=rgb_latent.cpu().numpy().astype(np.float16),
            depth_latent=depth_latent.cpu().numpy().astype(np.float16),
            latent_mask=latent_valid_mask(frame.valid_mask, vae_factor(vae)),
            intrinsics=frame.intrinsics,
            scene=frame.scene,
            name=frame.name,
            valid_mask=frame.valid_mask,
        )
        for frame, rgb_latent, depth_latent in zip(frames, rgb_latents, depth_latents, strict=True)
    ]


@torch.no_grad()
def dtype_error(vae: AutoencoderKL, exact: AutoencoderKL, log_depth: LogDepth, height: int, width: int) -> float:
    """Mean relative difference in metres of depth encoded by `vae` and by `exact`, both decoded by `exact`.

    Of two made-up frames, so that it is known before the first real one and equal in every run: ground that runs to
    the far end, and walls at any distance before it.
    """
    rng = np.random.default_rng(0)
    depth = torch.linspace(1, -1, height).reshape(1, -1, 1).repeat(2, 1, width)  # in log depth
    for _ in range(20):
        top, left = rng.integers(0, (height, width))
        depth[rng.integers(2), top : top + height // 3, left : left + width // 4] = rng.uniform(-1, 1)
    latents = [encode_log_depth(one, depth.to(one.device)) for one in (vae, exact)]
    depth_m, exact_m = (log_depth.denormalize(decode_log_depth(exact, latent)) for latent in latents)
    return ((depth_m - exact_m).abs() / exact_m).mean().item()
